// Entry points of the CUDA implementation: the map's type selects the instantiation.
#include "gates/se_cuda.h"

#include "gates/se_plan.h"

namespace chattn::cuda {

template <class T>
Status se_forward_as(const SeForward& p, void* scratch, void* stream);
template <class T>
Status se_backward_as(const SeBackward& p, void* scratch, void* stream);

namespace {

// Planes, positions and the gate's matrices are counted in 31 bits inside a kernel; the map in 64.
Status check_size(const MapShape& map, const MlpGate& gate) {
  constexpr index_t kLimit = (index_t{1} << 31) - 256;
  if (map.hw < kLimit && map.planes() < kLimit && map.n * gate.rd < kLimit &&
      map.c * gate.rd < kLimit)
    return Status{};
  return Status::error(
      "the CUDA kernels take fewer than 2^31 planes, positions, hidden values and weights; "
      "got N %lld, C %lld, HW %lld, rd %lld",
      static_cast<long long>(map.n), static_cast<long long>(map.c), static_cast<long long>(map.hw),
      static_cast<long long>(gate.rd));
}

index_t scratch_of(const MapShape& map, const MlpGate& gate, bool backward) {
  return SeScratch::make(plan_se(map, gate), map, gate, backward).total * acc_size(map.dtype);
}

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

}  // namespace

index_t scratch_bytes(const SeForward& p) { return scratch_of(p.map, p.gate, false); }
index_t scratch_bytes(const SeBackward& p) { return scratch_of(p.map, p.gate, true); }

Status se_forward(const SeForward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.gate));
  return by_type(p.map.dtype,
                 [&](auto t) { return se_forward_as<decltype(t)>(p, scratch, stream); });
}

Status se_backward(const SeBackward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.gate));
  return by_type(p.map.dtype,
                 [&](auto t) { return se_backward_as<decltype(t)>(p, scratch, stream); });
}

}  // namespace chattn::cuda
