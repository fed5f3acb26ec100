// How the operators of the selective kernel are launched, and what they need of scratch memory.
#pragma once
#include "blocks/sk/params.h"
#include "engine/cuda/launch_info.h"
#include "engine/cuda/plan.h"
#include "engine/cuda/run.h"

namespace chattn::cuda {

// Sums of M branches (staged 1; with a prologue M), or of their M products with g.
inline ReducePlan plan_sk_reduce(const MapShape& map, int staged, index_t gap) {
  return plan_reduce(map, staged, gap != 0);
}

// Numbers of scratch memory for them: partial results of every plane.
inline index_t sk_partials(const ReducePlan& plan, int outputs, const MapShape& map) {
  return plan.splits * outputs * map.planes();
}

inline ApplyPlan plan_sk_apply(const MapShape& map) { return plan_apply(map, 0); }

// ---- the whole block in one call
constexpr int kNormUnits = 8;  // hidden units of a block that normalises

inline index_t norm_blocks(index_t d) { return ceil_div(d, kNormUnits); }
struct SkPlan {
  ReducePlan reduce;
  ProductPlan hidden;  // to the hidden values, or to their gradients
  ProductPlan second;  // to the logits, or to the mean's gradient

  // Of a forward: the sums may lie where the logits will, which are written when they are done
  // with.
  bool sums_in_logits(int m) const { return reduce.splits <= m; }

  template <class V>
  void fields(V&& v) const {
    v("reduce", reduce);
    v("hidden", hidden);
    v("second", second);
  }
};

inline SkPlan plan_sk(const MapShape& map, const Branches& x, bool prologue, index_t d,
                      bool backward) {
  const int staged = backward || prologue ? x.count : 1;
  const index_t c = map.c, rows = x.count * c;
  return {plan_sk_reduce(map, staged, x.gap), plan_product(map.n, backward ? rows : c, d),
          plan_product(map.n, d, backward ? c : rows)};
}

// Scratch arrays, in accumulators, one after another.
struct SkScratch {
  index_t sums = 0;      // partial results of the reduction
  index_t prologue = 0;  // (2, M, C), where it is made of batch norms
  index_t dlogits = 0;   // (N, M, C); this and what follows only in the backward pass
  index_t dhidden = 0;   // (N, d)
  index_t dbefore = 0;   // (N, d), before the norm; dhidden where there is none
  index_t dpooled = 0;   // (N, C)
  index_t hidden = 0;    // partial products, if there are several
  index_t second = 0;
  index_t arrivals = 0;  // counters of both products
  index_t total = 0;

  // `norms`: in front of the branches, or (backward) of the hidden values.
  static SkScratch make(const SkPlan& plan, const MapShape& map, int m, index_t d, bool norms,
                        bool backward) {
    SkScratch s;
    const index_t planes = map.planes(), hidden = map.n * d, logits = m * planes;
    const auto parts = [](const ProductPlan& p, index_t outputs) {
      return p.splits > 1 ? padded(p.splits * outputs) : 0;
    };
    const bool sums = backward || !plan.sums_in_logits(m);
    s.prologue = s.sums + (sums ? padded(sk_partials(plan.reduce, backward ? m : 1, map)) : 0);
    s.dlogits = s.prologue + (norms ? padded(2 * m * map.c) : 0);
    s.dhidden = s.dlogits + (backward ? padded(logits) : 0);
    s.dbefore = s.dhidden + (backward && norms ? padded(hidden) : 0);
    s.dpooled = s.dbefore + (backward ? padded(hidden) : 0);
    s.hidden = s.dpooled + (backward ? padded(planes) : 0);
    s.second = s.hidden + parts(plan.hidden, hidden);
    s.arrivals = s.second + parts(plan.second, backward ? planes : logits);
    s.total = s.arrivals + plan.hidden.counters() + plan.second.counters();
    return s;
  }

 private:
  // Arrays start on 16-byte boundaries.
  static index_t padded(index_t accumulators) { return ceil_div(accumulators, 4) * 4; }
};

// ---- calls
inline ReducePlan plan_of(const SkSqueeze& p) {
  return plan_sk_reduce(p.map, p.x.prologue ? p.x.count : 1, p.x.gap);
}
inline ApplyPlan plan_of(const SkSelect& p) { return plan_sk_apply(p.map); }
inline ReducePlan plan_of(const SkDot& p) { return plan_sk_reduce(p.map, p.x.count, p.x.gap); }
inline ApplyPlan plan_of(const SkGradient& p) { return plan_sk_apply(p.map); }
inline SkPlan plan_of(const SkForward& p) {
  return plan_sk(p.map, p.x, p.norms.count > 0 || p.x.prologue, p.network.d, false);
}
inline SkPlan plan_of(const SkBackward& p) { return plan_sk(p.map, p.x, false, p.network.d, true); }

inline Status check_network(const MapShape& map, index_t m, index_t d) {
  return check_counts(
      map,
      {{"logits", m * map.planes()}, {"hidden values", map.n * d}, {"weights", m * map.c * d}});
}
template <>
inline Status check_size(const SkForward& p) {
  return check_network(p.map, p.x.count, p.network.d);
}
template <>
inline Status check_size(const SkBackward& p) {
  return check_network(p.map, p.x.count, p.network.d);
}

template <>
inline index_t scratch_elements(const SkSqueeze& p) {
  return sk_partials(plan_of(p), 1, p.map);
}
template <>
inline index_t scratch_elements(const SkSelect&) {
  return 0;
}
template <>
inline index_t scratch_elements(const SkDot& p) {
  return sk_partials(plan_of(p), p.x.count, p.map);
}
template <>
inline index_t scratch_elements(const SkGradient&) {
  return 0;
}
template <>
inline index_t scratch_elements(const SkForward& p) {
  const bool norms = p.norms.count > 0;
  return SkScratch::make(plan_of(p), p.map, p.x.count, p.network.d, norms, false).total;
}
template <>
inline index_t scratch_elements(const SkBackward& p) {
  const bool norms = p.network.normalises();
  return SkScratch::make(plan_of(p), p.map, p.x.count, p.network.d, norms, true).total;
}

// ---- what they launch
inline LaunchInfo describe_sk_reduce(const MapShape& map, int m, bool backward) {
  return fold_info(plan_sk_reduce(map, backward ? m : 1, 0), map,
                   backward ? "dgate = sum dy * x" : "squeeze", backward ? m + 1 : m);
}

inline LaunchInfo describe_sk_apply(const MapShape& map, int m, bool backward) {
  return apply_info(plan_sk_apply(map), map,
                    backward ? "dx = gate * dy + dmean" : "softmax, y = sum gate * x",
                    backward ? 1 : m, backward ? m : 1);
}

inline LaunchInfo describe_sk_planes(const MapShape& map, bool backward) {
  return {backward ? "logit_gradient" : "branch_mean",
          backward ? "dlogits" : "mean",
          ceil_div(map.planes(), kThreads),
          0,
          0,
          0};
}

// A forward or a backward call without the network in between.
inline std::vector<LaunchInfo> describe_sk(const MapShape& map, int m, bool backward) {
  return {describe_sk_reduce(map, m, backward), describe_sk_planes(map, backward),
          describe_sk_apply(map, m, backward)};
}

// With it.
inline std::vector<LaunchInfo> describe_sk_block(const MapShape& map, int m, index_t d,
                                                 SkNetwork::Norm norm, bool backward) {
  Branches x;
  x.count = m;
  const SkPlan plan = plan_sk(map, x, false, d, backward);
  const auto product = [](const char* work, const ProductPlan& p) {
    return LaunchInfo{"product", work, p.blocks(), 0, 0, 0};
  };
  std::vector<LaunchInfo> launches{describe_sk_reduce(map, m, backward)};
  if (backward) launches.push_back(describe_sk_planes(map, true));
  launches.push_back(product(backward ? "dhidden = W2^T dlogits" : "hidden = W1 p", plan.hidden));
  if (backward && norm != SkNetwork::Norm::none)
    launches.push_back({"norm_gradient", "dhidden before the norm", norm_blocks(d), 0, 0, 0});
  if (!backward && norm == SkNetwork::Norm::of_batch)
    launches.push_back({"norm_of_batch", "statistics, act", norm_blocks(d), 0, 0, 0});
  if (backward)
    launches.push_back({"outer_products", "dW1, db1, dW2, db2",
                        weight_tiles(static_cast<int>(d), static_cast<int>(map.c)) +
                            weight_tiles(static_cast<int>(m * map.c), static_cast<int>(d)),
                        0, 0, 0});
  launches.push_back(product(backward ? "dp = W1^T dhidden" : "logits = W2 act", plan.second));
  launches.push_back(describe_sk_apply(map, m, backward));
  return launches;
}

}  // namespace chattn::cuda
