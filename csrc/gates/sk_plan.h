// How the operators of the selective kernel are launched, and what they need of scratch memory.
#pragma once
#include "engine/cuda/launch_info.h"
#include "engine/cuda/plan.h"
#include "gates/select.h"

namespace chattn::cuda {

// Sums of M branches (staged 1; with a prologue M), or of their M products with g.
inline ReducePlan plan_sk_reduce(const MapShape& map, int staged, index_t gap) {
  return plan_reduce(map, staged, gap != 0);
}

// Numbers of scratch memory for them: partial results of every plane.
inline index_t sk_partials(const ReducePlan& plan, int outputs, const MapShape& map) {
  return plan.splits * outputs * map.planes();
}
inline index_t sk_squeeze_partials(const MapShape& map, const Branches& x) {
  return sk_partials(plan_sk_reduce(map, x.prologue ? x.count : 1, x.gap), 1, map);
}
inline index_t sk_dot_partials(const MapShape& map, const Branches& x) {
  return sk_partials(plan_sk_reduce(map, x.count, x.gap), x.count, map);
}

inline ApplyPlan plan_sk_apply(const MapShape& map) { return plan_apply(map, 0); }

// The launches of a forward or of a backward call, without the network in between.
inline std::vector<LaunchInfo> describe_sk(const MapShape& map, int m, bool backward) {
  const ReducePlan reduce = plan_sk_reduce(map, backward ? m : 1, 0);
  const ApplyPlan apply = plan_sk_apply(map);
  const index_t bytes = map.bytes();
  const index_t merge_blocks = ceil_div(map.planes(), kThreads);
  const index_t apply_blocks = apply.sample_tiles * apply.channel_tiles * apply.parts;
  const char* reduce_name = name_of(reduce.kind);
  const char* apply_name = map.channels_last ? "apply_rows" : "apply_spans";
  const int reduce_vector = reduce.vec * size_of(map.dtype);
  const int apply_vector = apply.vec * size_of(map.dtype);
  if (!backward)
    return {
        {reduce_name, "squeeze", reduce.blocks, reduce_vector, m * bytes, 0},
        {"branch_mean", "mean", merge_blocks, 0, 0, 0},
        {apply_name, "softmax, y = sum gate * x", apply_blocks, apply_vector, m * bytes, bytes}};
  return {{reduce_name, "dgate = sum dy * x", reduce.blocks, reduce_vector, (m + 1) * bytes, 0},
          {"logit_gradient", "dlogits", merge_blocks, 0, 0, 0},
          {apply_name, "dx = gate * dy + dmean", apply_blocks, apply_vector, bytes, m * bytes}};
}

}  // namespace chattn::cuda
