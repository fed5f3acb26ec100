// How a call of global response normalisation is launched, and what it needs of scratch memory.
#pragma once
#include "blocks/grn/params.h"
#include "engine/cuda/launch_info.h"
#include "engine/cuda/plan.h"
#include "engine/cuda/run.h"

namespace chattn::cuda {

// ---- weight gradients: sums over the samples; a thread adds up every kGrnRows-th
constexpr int kGrnChannels = 16, kGrnRows = kThreads / kGrnChannels;

struct GrnPlan {
  ReducePlan reduce;
  ApplyPlan apply;

  template <class V>
  void fields(V&& v) const {
    v("reduce", reduce);
    v("apply", apply);
  }
};

// Backward, a position leaves two numbers: dy*x and dy.
inline GrnPlan plan_grn(const MapShape& map, bool backward) {
  return {plan_reduce(map, backward ? 2 : 1), plan_apply(map, 0)};
}

inline GrnPlan plan_of(const GrnForward& p) { return plan_grn(p.map, false); }
inline GrnPlan plan_of(const GrnBackward& p) { return plan_grn(p.map, true); }

// Sums in parts, (splits, N, C); backward two of them, and (N, C) slopes.
template <>
inline index_t scratch_elements(const GrnForward& p) {
  return plan_of(p).reduce.splits * p.map.planes();
}
template <>
inline index_t scratch_elements(const GrnBackward& p) {
  return (2 * plan_of(p).reduce.splits + 1) * p.map.planes();
}

inline std::vector<LaunchInfo> describe(const GrnPlan& plan, const MapShape& map, bool backward) {
  const index_t bytes = map.bytes(), maps = backward ? 2 : 1;
  const ApplyPlan& a = plan.apply;
  const index_t blocks = a.sample_tiles * a.channel_tiles * a.parts;
  const char* reduce = name_of(plan.reduce.kind);
  const char* apply = map.channels_last ? "apply_rows" : "apply_spans";
  const int reduce_vector = plan.reduce.vec * size_of(map.dtype);
  const int apply_vector = a.vec * size_of(map.dtype);
  const LaunchInfo fold{reduce,
                        backward ? "sums of dy * x and dy" : "sum of squares",
                        plan.reduce.blocks,
                        reduce_vector,
                        maps * bytes,
                        0};
  if (!backward)
    return {fold,
            {"grn_gate", "gate = norm / (mean norm + eps)", map.n, 0, 0, 0},
            {apply, "y = (1 + weight * gate) * x + bias", blocks, apply_vector, bytes, bytes}};
  return {fold,
          {"grn_weights", "dweight, dbias", ceil_div(map.c, kGrnChannels), 0, 0, 0},
          {"grn_slope", "dnorm / norm", map.n, 0, 0, 0},
          {apply, "dx = (1 + weight * gate) * dy + slope * x", blocks, apply_vector, maps * bytes,
           bytes}};
}

}  // namespace chattn::cuda
