// How a tail's calls are launched, and what they need of scratch memory.
#pragma once
#include "blocks/tail/params.h"
#include "engine/cuda/launch_info.h"
#include "engine/cuda/plan.h"
#include "engine/cuda/run.h"
#include "engine/options.h"

namespace chattn::cuda {

// ---- numbers per channel: sums over the samples; a thread adds up every kTailRowsOfBlock-th
constexpr int kTailChannels = 8, kTailSamples = kThreads / kTailChannels;

// Fewer kernels than the other blocks have: no rows by two 16-bit elements, and where a position
// leaves five sums by four at most, for their registers.
constexpr Ways kEmits{1}, kTwoSums{2, 8, true, 1}, kFiveSums{2, 4, true, 1}, kFloat64{2, 1, false};

// Their activations are those of networks' tails.
template <class Call>
Status check_tail(const Call& p) {
  const Act act = std::max(p.functions.inner, p.functions.act);
  if (act > Act::gelu)
    return Status::error("the CUDA kernels of tails have no activation %d", static_cast<int>(act));
  return check_counts(p.map);
}
template <>
inline Status check_size(const TailSqueeze& p) {
  return check_tail(p);
}
template <>
inline Status check_size(const TailApply& p) {
  return check_tail(p);
}
template <>
inline Status check_size(const TailReduce& p) {
  return check_tail(p);
}
template <>
inline Status check_size(const TailGradient& p) {
  return check_tail(p);
}

// ---- squeeze
struct TailSqueezePlan {
  ReducePlan reduce;
  bool moments;  // of x: for the batch's statistics, or for what is pooled of it
  bool pools;    // a second fold, behind the inner activation

  template <class V>
  void fields(V&& v) const {
    v("reduce", reduce);
    v("moments", moments);
    v("pools", pools);
  }
};

inline TailSqueezePlan plan_of(const TailSqueeze& p) {
  const bool plain = p.functions.inner == Act::identity;
  return {plan_reduce(p.map, 1, false, p.map.dtype == DType::f64 ? kFloat64 : kTwoSums),
          p.norm.of_batch() || (p.pooled && plain), p.pooled != nullptr && !plain};
}

// Of each fold count, first value and two sums in parts, (4, splits, N, C).
template <>
inline index_t scratch_elements(const TailSqueeze& p) {
  const TailSqueezePlan plan = plan_of(p);
  return 4 * (plan.moments + plan.pools) * plan.reduce.splits * p.map.planes();
}

// ---- the way through the map
// Whether the derivative of `act` needs the residual.
inline bool reads_residual(const TailFunctions& f, const TailMaps& maps) {
  return maps.residual != nullptr && maps.mask == nullptr && f.act != Act::identity;
}

// What the passes are made for: with nothing in front of the gate, and straight lines behind the
// residual. float64 has the kernels of all others alone.
inline bool is_usual(const MapShape& map, const TailFunctions& f) {
  return f.inner == Act::identity && f.is_straight() && map.dtype != DType::f64;
}

struct TailApplyPlan {
  ApplyPlan apply;
  bool any;  // by 16 bytes of memory

  template <class V>
  void fields(V&& v) const {
    v("apply", apply);
    v("any", any);
  }
  index_t blocks(const MapShape& map) const {
    return any ? ceil_div(map.elements(), index_t{kThreads} * widest_vector(map.dtype))
               : apply.sample_tiles * apply.channel_tiles * apply.parts;
  }
  const char* kernel(const MapShape& map) const {
    return any ? "tail_any" : map.channels_last ? "apply_rows" : "apply_spans";
  }
};
struct TailGradientPlan : TailApplyPlan {};

// The apply pass has kernels for accesses of 16 bytes, and must write whole bytes of the mask.
inline TailApplyPlan plan_tail_apply(const MapShape& map, bool usual, bool writes_mask) {
  const ApplyPlan apply = plan_apply(map, 0, 1, kEmits);
  const index_t run = map.channels_last ? map.c : map.hw * (apply.channels % 8 ? 1 : map.c);
  const bool fits = apply.vec == widest_vector(map.dtype) && (!writes_mask || run % 8 == 0);
  return {apply, !usual || !fits};
}
inline TailApplyPlan plan_of(const TailApply& p) {
  return plan_tail_apply(p.map, is_usual(p.map, p.functions), p.mask != nullptr);
}
inline TailGradientPlan plan_of(const TailGradient& p) {
  const bool usual = is_usual(p.map, p.functions) && !reads_residual(p.functions, p.maps);
  return {plan_tail_apply(p.map, usual, false)};
}
template <>
inline index_t scratch_elements(const TailApply&) {
  return 0;
}

// What all positions of a channel lose: constant and slope.
template <>
inline index_t scratch_elements(const TailGradient& p) {
  return 2 * p.map.c;
}

// ---- reduce
struct TailReducePlan {
  ReducePlan reduce;
  int sums;  // that the fold makes of a plane

  template <class V>
  void fields(V&& v) const {
    v("reduce", reduce);
    v("sums", sums);
  }
};

inline TailReducePlan plan_tail_reduce(const MapShape& map, bool two) {
  const Ways ways = two ? kTwoSums : map.dtype == DType::f64 ? kFloat64 : kFiveSums;
  return {plan_reduce(map, two ? 2 : 3, false, ways), two ? 2 : 5};
}
inline TailReducePlan plan_of(const TailReduce& p) {
  return plan_tail_reduce(p.map,
                          is_usual(p.map, p.functions) && !reads_residual(p.functions, p.maps));
}

// Sums in parts, (sums, splits, N, C).
template <>
inline index_t scratch_elements(const TailReduce& p) {
  const TailReducePlan plan = plan_of(p);
  return plan.sums * plan.reduce.splits * p.map.planes();
}

// ---- for people
struct TailOptions {
  TailFunctions functions;
  bool residual, gate, of_batch, train;

  explicit TailOptions(Options& options)
      : residual(options.flag("residual")),
        gate(options.flag("gate")),
        of_batch(options.flag("of_batch")),
        train(options.flag("train")) {
    functions.set(options);
    options.integer("clusters", 1);  // of no influence here
  }
};

inline std::vector<LaunchInfo> describe_forward(const TailOptions& o, const MapShape& map) {
  const char marker = 0;  // of an array that is there
  TailSqueeze squeeze;
  squeeze.map = map;
  squeeze.functions = o.functions;
  if (!o.of_batch) squeeze.norm.mean = &marker;
  if (o.gate) squeeze.pooled = const_cast<char*>(&marker);
  const TailSqueezePlan plan = plan_of(squeeze);
  const TailApplyPlan apply = plan_tail_apply(map, is_usual(map, o.functions),
                                              o.train && o.residual && o.functions.is_masked());
  const index_t bytes = map.bytes(), per_channel = ceil_div(map.c, kTailChannels);
  std::vector<LaunchInfo> found;
  if (plan.moments) found.push_back(fold_info(plan.reduce, map, "mean and variance of planes", 1));
  found.push_back({"tail_statistics", "scale, shift, pooled values", per_channel, 0, 0, 0});
  if (plan.pools) {
    found.push_back(fold_info(plan.reduce, map, "sum of inner(v)", 1));
    found.push_back({"tail_means", "pooled values", per_channel, 0, 0, 0});
  }
  found.push_back({apply.kernel(map), "y = act(gate * inner(v) + residual)", apply.blocks(map), 16,
                   (o.residual ? 2 : 1) * bytes, bytes});
  return found;
}

inline std::vector<LaunchInfo> describe_backward(const TailOptions& o, const MapShape& map) {
  const bool writes = o.residual && o.functions.act != Act::identity;
  const bool reads = writes && !(o.train && o.functions.is_masked());
  const bool usual = is_usual(map, o.functions) && !reads;
  const TailReducePlan reduce = plan_tail_reduce(map, usual);
  const TailApplyPlan apply = plan_tail_apply(map, usual, false);
  const index_t bytes = map.bytes(), maps = reads ? 3 : 2;
  return {fold_info(reduce.reduce, map, "sums of planes", maps),
          {"tail_sums", "their parts together, dgate", ceil_div(map.planes(), kThreads), 0, 0, 0},
          {"tail_norm", "dweight, dbias", ceil_div(map.c, kTailChannels), 0, 0, 0},
          {apply.kernel(map), "dx, dresidual", apply.blocks(map), 16, maps * bytes,
           (writes ? 2 : 1) * bytes}};
}

}  // namespace chattn::cuda
