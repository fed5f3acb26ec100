// A list of maps that share a pass: checks, layout, pointers.
#pragma once
#include <algorithm>
#include <vector>

#include "ops/tensor.h"

namespace chattn::ops {

inline void check_branches(const std::vector<Tensor>& x) {
  STD_TORCH_CHECK(!x.empty() && x.size() <= kMaxBranches, "chattn_cuda::sk: 1 to ", kMaxBranches,
                  " branches expected");
  STD_TORCH_CHECK(x[0].dim() == 4 && x[0].size(1) >= 1 && x[0].size(2) >= 1 && x[0].size(3) >= 1,
                  "chattn_cuda::sk: branches must be 4-D, with C, H and W at least 1");
  for (const Tensor& t : x) {
    STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == x[0].size(0) && t.size(1) == x[0].size(1) &&
                        t.size(2) == x[0].size(2) && t.size(3) == x[0].size(3),
                    "chattn_cuda::sk: branches must have one shape");
    check_like(t, x[0], x[0].scalar_type(), x[0].numel(), "a branch");
  }
}

// Elements of other channels between the samples of a slice of channels, in channels_last between
// its positions; -1 where `t` is not such a slice. 0: it is dense.
inline index_t gap_of(const Tensor& t, bool channels_last) {
  const index_t c = t.size(1), h = t.size(2), w = t.size(3);
  const auto lies = [&](int d, index_t stride) { return t.size(d) == 1 || t.stride(d) == stride; };
  if (!channels_last) {
    const index_t gap = t.size(0) == 1 ? 0 : t.stride(0) - c * h * w;
    return lies(3, 1) && lies(2, w) && lies(1, h * w) ? std::max<index_t>(gap, -1) : -1;
  }
  const index_t pitch = w > 1 ? t.stride(3) : h > 1 ? t.stride(2) : t.size(0) > 1 ? t.stride(0) : c;
  const bool slice = lies(1, 1) && lies(3, pitch) && lies(2, w * pitch) && lies(0, h * w * pitch);
  return slice ? std::max<index_t>(pitch - c, -1) : -1;
}

// Whether the vectors of a slice's maps lie on 16-byte boundaries, whatever the slice.
inline bool aligned_slices(const MapShape& map) {
  return (map.channels_last ? map.c : map.c * map.hw) * size_of(map.dtype) % 16 == 0;
}

// Pointers to the branches, read where they lie: dense, or slices of one map. Anything else is
// copied first, into `x`.
inline Branches in_place(std::vector<Tensor>& x, const MapShape& map) {
  Branches b;
  b.count = static_cast<int>(x.size());
  b.gap = gap_of(x[0], map.channels_last);
  bool slices =
      b.count > 1 && b.gap > 0 && aligned_slices(map) && b.gap * size_of(map.dtype) % 16 == 0;
  for (const Tensor& t : x)
    slices = slices && gap_of(t, map.channels_last) == b.gap &&
             reinterpret_cast<std::uintptr_t>(t.data_ptr()) % 16 == 0;
  if (!slices) b.gap = 0;
  for (std::size_t m = 0; m < x.size(); ++m) {
    if (!slices) x[m] = in_format(x[m], map.channels_last);
    b.at[m] = x[m].data_ptr();
  }
  return b;
}

// Has the branches read through `prologue` (2, M, C) and the activation with that code.
inline void set_prologue(Branches& b, std::optional<Tensor>& prologue, std::int64_t act,
                         double act_param, const Tensor& x) {
  STD_TORCH_CHECK(act >= 0 && act < kActCount, "chattn_cuda::sk: unknown activation code");
  b.act = static_cast<Act>(act);
  b.act_param = act_param;
  if (!prologue) return;
  check_like(*prologue, x, acc_type(x.scalar_type()), 2 * b.count * x.size(1), "prologue");
  prologue = row_major(prologue);
  b.prologue = prologue->data_ptr();
}

// New maps of that shape: M of them or, `stacked`, one (N, M*C, H, W).
inline MutableBranches new_branches(std::vector<Tensor>& out, const Tensor& like, int count,
                                    const MapShape& map, bool stacked) {
  const std::int64_t n = like.size(0), c = like.size(1), h = like.size(2), w = like.size(3);
  MutableBranches b;
  b.count = count;
  const index_t step = map.channels_last ? c : c * map.hw;
  b.gap = stacked ? (count - 1) * step : 0;
  for (int m = 0; m < (stacked ? 1 : count); ++m)
    out.push_back(new_tensor(like, {n, stacked ? count * c : c, h, w}, like.scalar_type(),
                             map.channels_last));
  for (int m = 0; m < count; ++m)
    b.at[m] = stacked ? static_cast<char*>(out[0].data_ptr()) + m * step * size_of(map.dtype)
                      : out[static_cast<std::size_t>(m)].data_ptr();
  return b;
}

}  // namespace chattn::ops
