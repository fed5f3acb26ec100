// What the operators need from torch, on its stable ABI: dtypes, dense layouts, allocation.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>

#include "common/status.h"
#include "engine/map.h"

// With torch's own message from 2.13 on.
#if defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define CHATTN_SHIM(call) STABLE_TORCH_ERROR_CODE_CHECK(call)
#else
#define CHATTN_SHIM(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace chattn::ops {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(const Status& status, const char* op) {
  STD_TORCH_CHECK(status.ok, "chattn_cuda::", op, ": ", static_cast<const char*>(status.text));
}

inline DType dtype(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Double:
      return DType::f64;
    default:
      STD_TORCH_CHECK(false, "chattn_cuda: float32, float16, bfloat16 or float64 expected");
  }
}

inline ScalarType acc_type(ScalarType t) {
  return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Python explains to the user what is wrong; these checks only keep the kernels inside their
// arrays.
inline void check_like(const Tensor& t, const Tensor& x, ScalarType type, index_t numel,
                       const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == type && t.numel() == numel && t.device() == x.device(),
                  "chattn_cuda: ", name, " has the wrong dtype, size or device");
}

inline void check_gradient(const Tensor& dy, const Tensor& x) {
  STD_TORCH_CHECK(dy.dim() == 4 && dy.size(0) == x.size(0) && dy.size(1) == x.size(1) &&
                      dy.size(2) == x.size(2) && dy.size(3) == x.size(3),
                  "chattn_cuda: dy must have x's shape");
  check_like(dy, x, x.scalar_type(), x.numel(), "dy");
}

inline DType weight_dtype(const Tensor& w, const Tensor& x) {
  const DType type = dtype(w);
  STD_TORCH_CHECK(acc_type(w.scalar_type()) == acc_type(x.scalar_type()) &&
                      (w.scalar_type() == x.scalar_type() || type == DType::f32),
                  "chattn_cuda: weights must have x's dtype, or be float32 for a 16-bit x");
  return type;
}

// Dense in the order of dimensions `order`, outermost first; dimensions of size 1 do not count.
inline bool dense(const Tensor& t, const std::initializer_list<int>& order) {
  index_t expected = 1;
  for (auto it = order.end(); it != order.begin();) {
    const int d = *--it;
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// The memory format of a block's output; chattn_cuda.ops.memory_format_of is the same rule. A dense
// map keeps its format. Of the others, those with adjacent channels and pixels at least C apart
// count as channels_last, as in torch's elementwise operations.
inline bool is_channels_last(const Tensor& x) {
  if (x.numel() == 0 || dense(x, {0, 1, 2, 3})) return false;
  if (dense(x, {0, 2, 3, 1})) return true;
  const index_t c = x.size(1), h = x.size(2), w = x.size(3);
  return c > 1 && x.stride(1) == 1 && h * w > 1 && (h == 1 || x.stride(2) >= c) &&
         (w == 1 || x.stride(3) >= c);
}

inline MemoryFormat memory_format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline bool aligned(const Tensor& t) {
  return reinterpret_cast<std::uintptr_t>(t.data_ptr()) % 16 == 0;
}

// `t` itself where it is dense in that format and starts on a 16-byte boundary, else such a copy.
inline Tensor in_format(const Tensor& t, bool channels_last) {
  if (!(channels_last ? dense(t, {0, 2, 3, 1}) : dense(t, {0, 1, 2, 3})))
    return torch::stable::contiguous(t, memory_format(channels_last));
  return aligned(t) ? t : torch::stable::clone(t);
}

// `t` itself where it is dense and starts on a 16-byte boundary, else such a copy.
inline Tensor row_major(const Tensor& t) {
  if (!t.is_contiguous()) return torch::stable::contiguous(t);
  return aligned(t) ? t : torch::stable::clone(t);
}

inline std::optional<Tensor> row_major(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(row_major(*t)) : std::nullopt;
}

// For the tests: whether new tensors are filled with NaN, so that what nobody writes shows.
inline bool fills_new_tensors() {
  static const bool fills = std::getenv("CHATTN_FILL_NEW_TENSORS") != nullptr;
  return fills;
}

// An uninitialised tensor of up to four dimensions. Not by torch::stable::empty, which looks its
// operator up by name and takes four times as long.
inline Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         ScalarType type, bool channels_last = false) {
  constexpr std::size_t kRowMajor[] = {3, 2, 1, 0}, kChannelsLast[] = {1, 3, 2, 0};
  std::int64_t strides[4] = {}, step = 1;
  channels_last = channels_last && sizes.size() == 4 && sizes[2] * sizes[3] > 1;
  for (const std::size_t d : channels_last ? kChannelsLast : kRowMajor) {  // innermost first
    if (d >= sizes.size()) continue;
    strides[d] = step;
    step *= std::max<std::int64_t>(sizes[d], 1);
  }
  std::int32_t device = 0;
  AtenTensorHandle handle = nullptr;
  CHATTN_SHIM(aoti_torch_get_device_type(like.get(), &device));
  CHATTN_SHIM(aoti_torch_empty_strided(
      static_cast<std::int64_t>(sizes.size()), sizes.data(), strides,
      torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(type)), device,
      like.get_device_index(), &handle));
  Tensor made(handle);
  if (fills_new_tensors() && device == aoti_torch_device_type_cpu() && made.numel() > 0) {
    const int size = type == ScalarType::Byte ? 1 : size_of(dtype(made));
    std::memset(made.data_ptr(), 0xff, static_cast<std::size_t>(made.numel() * size));
  }
  return made;
}

// A map like x, in the format of a block's output; empty where it is not wanted.
inline Tensor new_map(const Tensor& x, bool wanted = true) {
  if (!wanted) return new_tensor(x, {0}, x.scalar_type());
  return new_tensor(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, x.scalar_type(),
                    is_channels_last(x));
}

inline const void* pointer(const std::optional<Tensor>& t) { return t ? t->data_ptr() : nullptr; }

inline MapShape map_shape(const Tensor& x, bool channels_last) {
  MapShape map;
  map.dtype = dtype(x);
  map.n = x.size(0);
  map.c = x.size(1);
  map.hw = x.size(2) * x.size(3);
  // A map of one position lies in both formats: as rows of C numbers, not as planes of one.
  map.channels_last = channels_last || map.hw == 1;
  return map;
}

}  // namespace chattn::ops
