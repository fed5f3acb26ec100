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
  if (!backward)
    return {fold_info(plan.reduce, map, "sum of squares", 1),
            {"grn_gate", "gate = norm / (mean norm + eps)", map.n, 0, 0, 0},
            apply_info(plan.apply, map, "y = (1 + weight * gate) * x + bias", 1, 1)};
  return {fold_info(plan.reduce, map, "sums of dy * x and dy", 2),
          {"grn_weights", "dweight, dbias", ceil_div(map.c, kGrnChannels), 0, 0, 0},
          {"grn_slope", "dnorm / norm", map.n, 0, 0, 0},
          apply_info(plan.apply, map, "dx = (1 + weight * gate) * dy + slope * x", 2, 1)};
}

}  // namespace chattn::cuda
