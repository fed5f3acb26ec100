// How a squeeze-and-excitation call is launched, and what it needs of scratch memory.
#pragma once
#include "blocks/se/params.h"
#include "engine/cuda/launch_info.h"
#include "engine/cuda/plan.h"
#include "engine/cuda/run.h"

namespace chattn::cuda {

struct SePlan {
  ReducePlan reduce;
  ProductPlan product;  // with two layers: the hidden values', and their gradients'
  ApplyPlan apply;

  template <class V>
  void fields(V&& v) const {
    v("reduce", reduce);
    v("product", product);
    v("apply", apply);
  }
};

inline SePlan plan_se(const MapShape& map, const MlpGate& gate) {
  SePlan plan;
  plan.reduce = plan_reduce(map);
  if (!gate.direct) plan.product = plan_product(map.n, map.c, gate.rd);
  plan.apply = plan_apply(map, map.c * gate.rd * size_of(gate.weight_dtype));
  return plan;
}

// Of the launch that finishes the sums where no product does.
inline index_t finish_blocks(const MapShape& map) { return ceil_div(map.planes(), kThreads); }

// Of the weights' gradients, in the launch that writes the map's.
inline int weight_blocks(const MapShape& map, const MlpGate& gate) {
  const int c = static_cast<int>(map.c), rd = static_cast<int>(gate.rd);
  return weight_tiles(c, rd) + (gate.direct ? 0 : weight_tiles(rd, c));
}

// Scratch arrays, in accumulators, one after another.
struct SeScratch {
  index_t first = 0;     // (splits, N, C): sums; dot products in the backward pass
  index_t parts = 0;     // (splits, N, rd) of a product that is split
  index_t dhidden = 0;   // (N, rd): only in the backward pass; direct: dz
  index_t dz = 0;        // (N, C): only in the backward pass
  index_t arrivals = 0;  // a counter per tile that is split
  index_t total = 0;

  static SeScratch make(const SePlan& plan, const MapShape& map, const MlpGate& gate,
                        bool backward) {
    SeScratch s;
    const index_t planes = map.planes();
    const index_t splits = plan.product.splits, hidden = gate.direct ? 0 : map.n * gate.rd;
    s.parts = padded(plan.reduce.splits * planes);
    s.dhidden = s.parts + (splits > 1 ? padded(splits * hidden) : 0);
    s.dz = s.dhidden + (backward ? padded(hidden) : 0);
    s.arrivals = s.dz + (backward ? padded(planes) : 0);
    s.total = s.arrivals + plan.product.counters();
    return s;
  }

 private:
  // Arrays start on 16-byte boundaries.
  static index_t padded(index_t accumulators) { return ceil_div(accumulators, 4) * 4; }
};

// ---- calls
inline SePlan plan_of(const SeForward& p) { return plan_se(p.map, p.gate); }
inline SePlan plan_of(const SeBackward& p) { return plan_se(p.map, p.gate); }

inline Status check_se(const MapShape& map, const MlpGate& gate) {
  return check_counts(map, {{"hidden values", map.n * gate.rd}, {"weights", map.c * gate.rd}});
}
template <>
inline Status check_size(const SeForward& p) {
  return check_se(p.map, p.gate);
}
template <>
inline Status check_size(const SeBackward& p) {
  return check_se(p.map, p.gate);
}

template <>
inline index_t scratch_elements(const SeForward& p) {
  return SeScratch::make(plan_of(p), p.map, p.gate, false).total;
}
template <>
inline index_t scratch_elements(const SeBackward& p) {
  return SeScratch::make(plan_of(p), p.map, p.gate, true).total;
}

inline std::vector<LaunchInfo> describe(const SePlan& plan, const MapShape& map,
                                        const MlpGate& gate, bool backward) {
  std::vector<LaunchInfo> launches;
  const auto add = [&](const LaunchInfo& launch) { launches.push_back(launch); };
  if (!backward) {
    add(fold_info(plan.reduce, map, "squeeze", 1));
    if (gate.direct) add({"finish", "p", finish_blocks(map), 0, 0, 0});
    if (!gate.direct) add({"product", "hidden = W1 p", plan.product.blocks(), 0, 0, 0});
    add(apply_info(plan.apply, map, "gate, y = gate * x", 1, 1));
    return launches;
  }
  const char* gradients = gate.direct ? "dx = gate * dy + dmean; dW2, db2"
                                      : "dx = gate * dy + dmean; dW1, db1, dW2, db2";
  add(fold_info(plan.reduce, map, "dgate = sum dy * x", 2));
  if (gate.direct) add({"finish", "dz", finish_blocks(map), 0, 0, 0});
  if (!gate.direct) add({"product", "dhidden = W2^T dz", plan.product.blocks(), 0, 0, 0});
  add(apply_info(plan.apply, map, gradients, 1, 1, weight_blocks(map, gate)));
  return launches;
}

}  // namespace chattn::cuda
