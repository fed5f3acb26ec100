// Entry points of the CUDA implementation.
#include "blocks/eca/cuda.h"

#include "blocks/eca/plan.h"
#include "engine/cuda/limits.h"

namespace chattn::cuda {
namespace {

Status check_size(const MapShape& map, const ConvGate& gate) {
  CHATTN_TRY(check_counts(map, {{"weights", gate.weights(map.c)}}));
  if (gate.taps > index_t{65535} * kGradTaps)  // blockIdx.z
    return Status::error("the CUDA kernels take a convolution of at most %lld taps; got %lld",
                         static_cast<long long>(index_t{65535} * kGradTaps),
                         static_cast<long long>(gate.taps));
  const index_t parts = plan_conv_grad(map, gate).parts(gate);
  return check_counts(map, {{"parts of the weights' gradients", parts * gate.weights(map.c)}});
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
  return run_by_type(p, scratch, stream);
}
template <>
Status run(const EcaBackward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.gate));
  return run_by_type(p, scratch, stream);
}

}  // namespace chattn::cuda
