// Entry points of the CUDA implementation.
#include "blocks/sk/cuda.h"

#include "blocks/sk/plan.h"
#include "engine/cuda/limits.h"

namespace chattn::cuda {

namespace {

Status check_size(const MapShape& map, index_t m, index_t d) {
  return check_counts(
      map,
      {{"logits", m * map.planes()}, {"hidden values", map.n * d}, {"weights", m * map.c * d}});
}

}  // namespace

template <>
index_t scratch_bytes(const SkSqueeze& p) {
  return sk_squeeze_partials(p.map, p.x) * acc_size(p.map.dtype);
}
template <>
index_t scratch_bytes(const SkSelect&) {
  return 0;
}
template <>
index_t scratch_bytes(const SkDot& p) {
  return sk_dot_partials(p.map, p.x) * acc_size(p.map.dtype);
}
template <>
index_t scratch_bytes(const SkGradient&) {
  return 0;
}

template <>
index_t scratch_bytes(const SkForward& p) {
  const bool norms = p.norms.count > 0;
  const SkPlan plan = plan_sk(p.map, p.x, norms || p.x.prologue, p.network.d, false);
  return SkScratch::make(plan, p.map, p.x.count, p.network.d, norms, false).total *
         acc_size(p.map.dtype);
}
template <>
index_t scratch_bytes(const SkBackward& p) {
  const SkPlan plan = plan_sk(p.map, p.x, false, p.network.d, true);
  return SkScratch::make(plan, p.map, p.x.count, p.network.d, p.network.normalises(), true).total *
         acc_size(p.map.dtype);
}

template <>
Status run(const SkSqueeze& p, void* scratch, void* stream) {
  CHATTN_TRY(check_counts(p.map));
  return run_by_type(p, scratch, stream);
}
template <>
Status run(const SkSelect& p, void* scratch, void* stream) {
  CHATTN_TRY(check_counts(p.map));
  return run_by_type(p, scratch, stream);
}
template <>
Status run(const SkDot& p, void* scratch, void* stream) {
  CHATTN_TRY(check_counts(p.map));
  return run_by_type(p, scratch, stream);
}
template <>
Status run(const SkGradient& p, void* scratch, void* stream) {
  CHATTN_TRY(check_counts(p.map));
  return run_by_type(p, scratch, stream);
}
template <>
Status run(const SkForward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.x.count, p.network.d));
  return run_by_type(p, scratch, stream);
}
template <>
Status run(const SkBackward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.x.count, p.network.d));
  return run_by_type(p, scratch, stream);
}

}  // namespace chattn::cuda
