// Entry points of the CUDA implementation.
#include "blocks/se/cuda.h"

#include "blocks/se/plan.h"
#include "engine/cuda/limits.h"

namespace chattn::cuda {
namespace {

Status check_size(const MapShape& map, const MlpGate& gate) {
  return check_counts(map, {{"hidden values", map.n * gate.rd}, {"weights", map.c * gate.rd}});
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
  return run_by_type(p, scratch, stream);
}
template <>
Status run(const SeBackward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.gate));
  return run_by_type(p, scratch, stream);
}

}  // namespace chattn::cuda
