// How a squeeze-and-excitation call is launched, and what it needs of scratch memory.
#pragma once
#include "engine/cuda/launch_info.h"
#include "engine/cuda/plan.h"
#include "gates/mlp.h"

namespace chattn::cuda {

struct SePlan {
  ReducePlan reduce;
  ContractPlan contract;
  ApplyPlan apply;
};

inline SePlan plan_se(const MapShape& map, const MlpGate& gate) {
  SePlan plan;
  plan.reduce = plan_reduce(map);
  if (!gate.direct) plan.contract = plan_contract(map.n, map.c, gate.rd);
  plan.apply = plan_apply(map, map.c * gate.rd * size_of(gate.weight_dtype));
  return plan;
}

// Of the launch that stands in for contract where the gate has one layer.
inline index_t finish_blocks(const MapShape& map) { return ceil_div(map.planes(), kThreads); }

// Scratch arrays, in accumulators, one after another.
struct SeScratch {
  index_t first = 0;     // (splits, N, C): sums; dot products in the backward pass
  index_t second = 0;    // (splits, N, C): maxima; counts. Only with max pooling
  index_t product = 0;   // (splits, N, rd): partial products, if there are several
  index_t dhidden = 0;   // (N, rd): only in the backward pass; direct: dz
  index_t dz = 0;        // (N, C): only in the backward pass
  index_t arrivals = 0;  // a counter per tile that is split
  index_t total = 0;

  static SeScratch make(const SePlan& plan, const MapShape& map, const MlpGate& gate,
                        bool backward) {
    SeScratch s;
    const index_t planes = map.planes();
    s.second = plan.reduce.splits * planes;
    s.product = s.second + (gate.add_maxpool ? plan.reduce.splits * planes : 0);
    const index_t splits = plan.contract.splits, hidden = gate.direct ? 0 : map.n * gate.rd;
    s.dhidden = s.product + (splits > 1 ? splits * hidden : 0);
    s.dz = s.dhidden + (backward ? hidden : 0);
    s.arrivals = s.dz + (backward ? planes : 0);
    s.total = s.arrivals + plan.contract.counters();
    return s;
  }
};

inline std::vector<LaunchInfo> describe(const SePlan& plan, const MapShape& map,
                                        const MlpGate& gate, bool backward) {
  const ContractPlan& c = plan.contract;
  const ApplyPlan& a = plan.apply;
  const index_t map_bytes = map.bytes();
  // A direct gate has nothing to contract: the sums are finished alone.
  const char* contract = gate.direct ? "finish" : "contract";
  const index_t contract_blocks = gate.direct ? finish_blocks(map) : c.tiles() * c.splits;
  const index_t apply_blocks = a.sample_tiles * a.channel_tiles * a.parts;
  const char* reduce = name_of(plan.reduce.kind);
  const char* apply = map.channels_last ? "apply_rows" : "apply_spans";
  const int reduce_vector = plan.reduce.vec * size_of(map.dtype);
  const int apply_vector = a.vec * size_of(map.dtype);
  if (!backward)
    return {{reduce, "squeeze", plan.reduce.blocks, reduce_vector, map_bytes, 0},
            {contract, gate.direct ? "p" : "hidden = W1 p", contract_blocks, 0, 0, 0},
            {apply, "gate, y = gate * x", apply_blocks, apply_vector, map_bytes, map_bytes}};
  const index_t gradient_reads = gate.add_maxpool ? 2 * map_bytes : map_bytes;
  const index_t weight_tiles =
      (gate.direct ? 1 : 2) * ceil_div(map.c, kWeightTile) * ceil_div(gate.rd, kWeightTile);
  return {{reduce, "dgate = sum dy * x", plan.reduce.blocks, reduce_vector, 2 * map_bytes, 0},
          {contract, gate.direct ? "dz" : "dhidden = W2^T dz", contract_blocks, 0, 0, 0},
          {"weight_grads", gate.direct ? "dW2, db2" : "dW1, db1, dW2, db2", weight_tiles, 0, 0, 0},
          {apply, "dx = gate * dy + dmean", apply_blocks, apply_vector, gradient_reads, map_bytes}};
}

}  // namespace chattn::cuda
