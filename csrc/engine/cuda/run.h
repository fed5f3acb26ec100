// What the operators call on a GPU. A block's plan.h specialises what depends on the call.
#pragma once
#include "engine/cuda/limits.h"
#include "engine/run.h"

namespace chattn::cuda {

// Whether the kernels can count what the call has.
template <class Call>
Status check_size(const Call& p) {
  return check_counts(p.map);
}

// Accumulators of scratch memory.
template <class Call>
index_t scratch_elements(const Call& p) = delete;

template <class Call>
index_t scratch_bytes(const Call& p) {
  return scratch_elements(p) * acc_size(p.map.dtype);
}

// Calls f with a value of the map's type.
template <class F>
Status by_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f16:
      return f(half_t{});
    case DType::bf16:
      return f(bfloat16_t{});
    case DType::f64:
      return f(double{});
  }
  return Status::error("unknown dtype code %d", static_cast<int>(dtype));
}

// `scratch`: of scratch_bytes(). Launches on `stream`, with no synchronisation.
template <class Call>
Status run(const Call& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p));
  return by_type(p.map.dtype, [&](auto t) { return run_as<decltype(t)>(p, scratch, stream); });
}

}  // namespace chattn::cuda
