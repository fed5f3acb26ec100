// The operators of the selective kernel: schema, memory-safety checks, allocation. What runs them
// is the `Runner`: static run(const Tensor& x, const Params&).
#pragma once
#include <vector>

#include "blocks/sk/params.h"
#include "ops/branches.h"

namespace chattn::ops {

inline constexpr const char* kSkSqueezeSchema =
    "sk_squeeze(Tensor[] branches, Tensor? prologue=None) -> Tensor pooled";
inline constexpr const char* kSkSelectSchema =
    "sk_select(Tensor[] branches, Tensor logits, Tensor? prologue=None) -> Tensor y";
inline constexpr const char* kSkDotSchema =
    "sk_dot(Tensor dy, Tensor logits, Tensor[] branches) -> Tensor dlogits";
inline constexpr const char* kSkGradientSchema =
    "sk_gradient(Tensor dy, Tensor logits, Tensor? dpooled, bool channels_last, bool stacked) -> "
    "Tensor[] dbranches";

// Has the branches read through `prologue` (2, M, C).
inline void set_prologue(Branches& b, std::optional<Tensor>& prologue, const Tensor& x) {
  if (!prologue) return;
  check_like(*prologue, x, acc_type(x.scalar_type()), 2 * b.count * x.size(1), "prologue");
  prologue = row_major(prologue);
  b.prologue = prologue->data_ptr();
}

template <class Runner>
Tensor sk_squeeze(std::vector<Tensor> x, std::optional<Tensor> prologue) {
  check_branches(x);
  SkSqueeze p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  Tensor pooled = new_tensor(x[0], {p.map.n, p.map.c}, acc_type(x[0].scalar_type()));
  if (p.map.n > 0) {
    p.x = in_place(x, p.map);
    set_prologue(p.x, prologue, x[0]);
    p.pooled = pooled.data_ptr();
    Runner::run(x[0], p);
  }
  return pooled;
}

template <class Runner>
Tensor sk_select(std::vector<Tensor> x, Tensor logits, std::optional<Tensor> prologue) {
  check_branches(x);
  SkSelect p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  const index_t n = p.map.n, c = p.map.c, m = static_cast<index_t>(x.size());
  check_like(logits, x[0], acc_type(x[0].scalar_type()), n * m * c, "logits");
  Tensor y =
      new_tensor(x[0], {n, c, x[0].size(2), x[0].size(3)}, x[0].scalar_type(), p.map.channels_last);
  if (n > 0) {
    p.x = in_place(x, p.map);
    set_prologue(p.x, prologue, x[0]);
    logits = row_major(logits);
    p.logits = logits.data_ptr();
    p.y = y.data_ptr();
    Runner::run(x[0], p);
  }
  return y;
}

template <class Runner>
Tensor sk_dot(Tensor dy, Tensor logits, std::vector<Tensor> x) {
  check_branches(x);
  SkDot p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  const index_t n = p.map.n, c = p.map.c, m = static_cast<index_t>(x.size());
  const ScalarType acc = acc_type(x[0].scalar_type());
  check_gradient(dy, x[0]);
  check_like(logits, x[0], acc, n * m * c, "logits");
  Tensor dlogits = new_tensor(x[0], {n, m, c}, acc);
  if (n > 0) {
    p.x = in_place(x, p.map);
    dy = in_format(dy, p.map.channels_last);
    logits = row_major(logits);
    p.dy = dy.data_ptr();
    p.logits = logits.data_ptr();
    p.dlogits = dlogits.data_ptr();
    Runner::run(x[0], p);
  }
  return dlogits;
}

template <class Runner>
std::vector<Tensor> sk_gradient(Tensor dy, Tensor logits, std::optional<Tensor> dpooled,
                                bool channels_last, bool stacked) {
  STD_TORCH_CHECK(dy.dim() == 4 && dy.size(1) >= 1 && dy.size(2) >= 1 && dy.size(3) >= 1,
                  "chattn_cuda::sk: dy must be 4-D, with C, H and W at least 1");
  STD_TORCH_CHECK(logits.dim() == 3 && logits.size(1) >= 1 && logits.size(1) <= kMaxBranches,
                  "chattn_cuda::sk: logits must be (N, M, C) of 1 to ", kMaxBranches, " branches");
  SkGradient p;
  p.map = map_shape(dy, channels_last);
  const int count = static_cast<int>(logits.size(1));
  const ScalarType acc = acc_type(dy.scalar_type());
  check_like(logits, dy, acc, count * p.map.planes(), "logits");
  if (dpooled) check_like(*dpooled, dy, acc, p.map.planes(), "dpooled");
  STD_TORCH_CHECK(!stacked || aligned_slices(p.map),
                  "chattn_cuda::sk: slices of a stacked gradient must start on 16-byte boundaries");
  std::vector<Tensor> dx;
  p.dx = new_branches(dx, dy, count, p.map, stacked);
  if (p.map.n > 0) {
    dy = in_format(dy, channels_last);
    logits = row_major(logits);
    dpooled = row_major(dpooled);
    p.dy = dy.data_ptr();
    p.logits = logits.data_ptr();
    p.dpooled = pointer(dpooled);
    Runner::run(dy, p);
  }
  return dx;
}

template <class Runner>
void register_sk(torch::stable::detail::StableLibrary& m) {
  m.impl("sk_squeeze", TORCH_BOX(&sk_squeeze<Runner>));
  m.impl("sk_select", TORCH_BOX(&sk_select<Runner>));
  m.impl("sk_dot", TORCH_BOX(&sk_dot<Runner>));
  m.impl("sk_gradient", TORCH_BOX(&sk_gradient<Runner>));
}

template <class Library>
void define_sk(Library& m) {
  m.def(kSkSqueezeSchema);
  m.def(kSkSelectSchema);
  m.def(kSkDotSchema);
  m.def(kSkGradientSchema);
}

}  // namespace chattn::ops
