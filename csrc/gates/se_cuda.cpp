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
  constexpr index_t kLimit = (index_t{1} << 31) - 4096;  // loops step past the end by less
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

}  // namespace

template <>
index_t scratch_bytes(const SeForward& p) {
  return scratch_of(p.map, p.gate, false);
}
template <>
index_t scratch_bytes(const SeBackward& p) {
  return scratch_of(p.map, p.gate, true);
}

template <>
Status run(const SeForward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.gate));
  return by_type(p.map.dtype,
                 [&](auto t) { return se_forward_as<decltype(t)>(p, scratch, stream); });
}

template <>
Status run(const SeBackward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.gate));
  return by_type(p.map.dtype,
                 [&](auto t) { return se_backward_as<decltype(t)>(p, scratch, stream); });
}

}  // namespace chattn::cuda
