// Entry points of the CUDA implementation: the map's type selects the instantiation.
#include "gates/eca_cuda.h"

#include "gates/eca_plan.h"

namespace chattn::cuda {

template <class T>
Status eca_forward_as(const EcaForward& p, void* scratch, void* stream);
template <class T>
Status eca_backward_as(const EcaBackward& p, void* scratch, void* stream);

namespace {

// Planes, positions and weights are counted in 31 bits inside a kernel; the map in 64.
Status check_size(const MapShape& map, const ConvGate& gate) {
  constexpr index_t kLimit = (index_t{1} << 31) - 4096;  // loops step past the end by less
  if (map.hw < kLimit && map.planes() < kLimit && gate.weights(map.c) < kLimit &&
      plan_conv_grad(map, gate).parts(gate) * gate.weights(map.c) < kLimit &&
      gate.taps <= index_t{65535} * kGradTaps)  // blockIdx.z
    return Status{};
  return Status::error(
      "the CUDA kernels take fewer than 2^31 planes, positions and weights; got N %lld, C %lld, "
      "HW %lld, k %lld",
      static_cast<long long>(map.n), static_cast<long long>(map.c), static_cast<long long>(map.hw),
      static_cast<long long>(gate.taps));
}

index_t scratch_of(const MapShape& map, const ConvGate& gate, bool backward, bool weights) {
  return EcaScratch::make(plan_eca(map, gate), map, gate, backward, weights).total *
         acc_size(map.dtype);
}

}  // namespace

template <>
index_t scratch_bytes(const EcaForward& p) {
  return scratch_of(p.map, p.gate, false, false);
}
template <>
index_t scratch_bytes(const EcaBackward& p) {
  return scratch_of(p.map, p.gate, true, p.dweight != nullptr);
}

template <>
Status run(const EcaForward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.gate));
  return by_type(p.map.dtype,
                 [&](auto t) { return eca_forward_as<decltype(t)>(p, scratch, stream); });
}

template <>
Status run(const EcaBackward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.gate));
  return by_type(p.map.dtype,
                 [&](auto t) { return eca_backward_as<decltype(t)>(p, scratch, stream); });
}

}  // namespace chattn::cuda
