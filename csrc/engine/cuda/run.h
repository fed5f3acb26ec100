// What the operators call. A block specialises these for its parameters in blocks/<block>/cuda.cpp.
#pragma once
#include "common/status.h"
#include "common/types.h"
#include "engine/map.h"

namespace chattn::cuda {

// Bytes of scratch memory that run() needs.
template <class Params>
index_t scratch_bytes(const Params& p);

// Launches on `stream`, with no synchronisation.
template <class Params>
Status run(const Params& p, void* scratch, void* stream);

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

// run() for one type of maps. Specialised in the block's .cu files, which are compiled once for
// each type, as CHATTN_T (setup.py).
template <class T, class Params>
Status run_as(const Params& p, void* scratch, void* stream);

// Declares those specialisations.
#define CHATTN_RUN_AS(Params)                                              \
  template <>                                                              \
  Status run_as<float>(const Params& p, void* scratch, void* stream);      \
  template <>                                                              \
  Status run_as<half_t>(const Params& p, void* scratch, void* stream);     \
  template <>                                                              \
  Status run_as<bfloat16_t>(const Params& p, void* scratch, void* stream); \
  template <>                                                              \
  Status run_as<double>(const Params& p, void* scratch, void* stream)

template <class Params>
Status run_by_type(const Params& p, void* scratch, void* stream) {
  return by_type(p.map.dtype, [&](auto t) { return run_as<decltype(t)>(p, scratch, stream); });
}

}  // namespace chattn::cuda
