// How a call of efficient channel attention is launched, and what it needs of scratch memory.
#pragma once
#include "blocks/eca/params.h"
#include "engine/cuda/launch_info.h"
#include "engine/cuda/plan.h"
#include "engine/cuda/run.h"

namespace chattn::cuda {

// Of shared memory. What every architecture offers a block, for samples that a cluster can hold
// then; else less, so that most multiprocessors hold two blocks.
constexpr index_t kStageBytes = 48 * 1024, kMostStageBytes = 64 * 1024;
constexpr int kCluster = 8;
constexpr index_t kMaxReach = 16;

// ---- forward in one launch: a block keeps a sample's tile of channels in shared memory between
// the squeeze and the rescale. The means of the neighbouring channels come from the other blocks of
// a cluster, where that holds the whole sample, else from reading those channels too.
struct StagePlan {
  bool fits = false;
  int tile = 1, tiles = 1;  // channels per block, blocks per sample
  int lanes = 1;            // threads that share a plane
  // Of shared memory: where the runs of planes before and behind the tile, the means and the gates
  // begin.
  int before = 0, behind = 0, means = 0, gates = 0, bytes = 0;

  // Blocks that form a cluster on a device that has clusters.
  unsigned cluster() const { return tiles <= kCluster ? static_cast<unsigned>(tiles) : 1u; }

  template <class V>
  void fields(V&& v) const {
    v("fits", fits);
    v("tiles", tiles);
    v("cluster", cluster());
  }
};

// Elements of a run of planes that starts anywhere in a 16-byte word.
constexpr index_t run_elements(index_t planes, index_t hw, int widest) {
  return ceil_div(planes * hw + widest - 1, widest) * widest;
}

inline StagePlan lay_out(const MapShape& map, index_t reach, index_t tile) {
  const int widest = widest_vector(map.dtype), acc = acc_size(map.dtype);
  const index_t own = run_elements(tile, map.hw, widest) * size_of(map.dtype);
  const index_t side = run_elements(reach, map.hw, widest) * size_of(map.dtype);
  const index_t sides = tile < map.c ? 2 * side : 0;
  const index_t means = (tile + 2 * reach) * acc;
  StagePlan plan;
  plan.tile = static_cast<int>(tile);
  plan.tiles = static_cast<int>(ceil_div(map.c, tile));
  plan.before = static_cast<int>(own);
  plan.behind = static_cast<int>(own + sides / 2);
  plan.means = static_cast<int>(own + sides);
  plan.gates = static_cast<int>(ceil_div(own + sides + means, 16) * 16);
  plan.bytes = static_cast<int>(plan.gates + tile * acc);
  return plan;
}

inline StagePlan plan_stage(const MapShape& map, const ConvGate& gate) {
  const index_t reach = gate.reach();
  if (map.channels_last || reach > kMaxReach) return StagePlan{};
  index_t most = std::min(map.c, kStageBytes / (map.hw * size_of(map.dtype)));
  const index_t in_cluster = ceil_div(map.c, kCluster);
  if (most < in_cluster && lay_out(map, reach, in_cluster).bytes <= kMostStageBytes)
    most = in_cluster;
  while (most > 0 &&
         lay_out(map, reach, most).bytes > (most == in_cluster ? kMostStageBytes : kStageBytes))
    --most;
  // Enough blocks for half a GPU, but a word for every thread, and sides of at most 1/16 of a tile.
  const index_t filled = ceil_div(map.planes(), kManyBlocks / 2);
  const index_t busy = ceil_div(kThreads * 16, map.hw * size_of(map.dtype));
  const index_t tile = std::min(most, std::max({filled, busy, 32 * reach}));
  if (tile < 1) return StagePlan{};
  const index_t even = ceil_div(map.c, ceil_div(map.c, tile));
  StagePlan plan = lay_out(map, reach, even);
  // Sides that are half as large as the tile, or reach past the next tile: two passes do as well.
  const index_t last = map.c - (plan.tiles - 1) * even;
  plan.fits = plan.tiles == 1 || (4 * reach <= even && reach <= last);
  while (plan.lanes < 32 && plan.lanes * 2 * even <= kThreads) plan.lanes *= 2;
  return plan;
}

// ---- weight gradients: sums over samples and channels in parts, then over the parts
constexpr int kGradChannels = 64, kGradRows = kThreads / kGradChannels;
constexpr int kGradTaps = 8;

struct ConvGradPlan {
  int channel_tiles = 1, splits = 1, tap_tiles = 1;  // splits: of the samples
  int parts(const ConvGate& gate) const {
    return gate.per_channel ? splits : splits * channel_tiles;
  }

  template <class V>
  void fields(V&& v) const {
    v("splits", splits);
    v("tap_tiles", tap_tiles);
  }
};

inline ConvGradPlan plan_conv_grad(const MapShape& map, const ConvGate& gate) {
  ConvGradPlan plan;
  plan.channel_tiles = static_cast<int>(ceil_div(map.c, kGradChannels));
  plan.tap_tiles = static_cast<int>(ceil_div(gate.taps, kGradTaps));
  plan.splits = static_cast<int>(std::clamp<index_t>(
      std::min(kManyBlocks / 4 / plan.channel_tiles, map.n / (4 * kGradRows)), 1, kMaxSplits));
  return plan;
}

struct EcaPlan {
  StagePlan stage;  // forward, where it fits; else reduce and apply
  ReducePlan reduce;
  ApplyPlan apply;
  ConvGradPlan grad;

  template <class V>
  void fields(V&& v) const {
    v("stage", stage);
    v("reduce", reduce);
    v("apply", apply);
    v("grad", grad);
  }
};

inline EcaPlan plan_eca(const MapShape& map, const ConvGate& gate) {
  EcaPlan plan;
  plan.stage = plan_stage(map, gate);
  plan.reduce = plan_reduce(map);
  // A few words of the map for every thread that helps with a tile of gates.
  const index_t sample_elements = std::min<index_t>(map.c, kApplyChannels) * map.hw;
  index_t samples = 1;
  while (samples < kApplySamples && samples < map.n && samples * sample_elements < 16384 &&
         map.planes() / (samples * kApplyChannels) > kManyBlocks)
    samples *= 2;
  plan.apply = plan_apply(map, 0, static_cast<int>(samples));
  plan.grad = plan_conv_grad(map, gate);
  return plan;
}

// Scratch arrays, in accumulators, one after another.
struct EcaScratch {
  index_t sums = 0;     // (splits, N, C): sums; dot products in the backward pass
  index_t weights = 0;  // (parts, weights): only for the weights' gradient
  index_t total = 0;

  static EcaScratch make(const EcaPlan& plan, const MapShape& map, const ConvGate& gate,
                         bool backward, bool weight_gradient) {
    EcaScratch s;
    s.weights = backward || !plan.stage.fits ? plan.reduce.splits * map.planes() : 0;
    s.total = s.weights + (weight_gradient ? plan.grad.parts(gate) * gate.weights(map.c) : 0);
    return s;
  }
};

// ---- calls
inline EcaPlan plan_of(const EcaForward& p) { return plan_eca(p.map, p.gate); }
inline EcaPlan plan_of(const EcaBackward& p) { return plan_eca(p.map, p.gate); }

inline Status check_eca(const MapShape& map, const ConvGate& gate) {
  CHATTN_TRY(check_counts(map, {{"weights", gate.weights(map.c)}}));
  if (gate.taps > index_t{65535} * kGradTaps)  // blockIdx.z
    return Status::error("the CUDA kernels take a convolution of at most %lld taps; got %lld",
                         static_cast<long long>(index_t{65535} * kGradTaps),
                         static_cast<long long>(gate.taps));
  const index_t parts = plan_conv_grad(map, gate).parts(gate);
  return check_counts(map, {{"parts of the weights' gradients", parts * gate.weights(map.c)}});
}
template <>
inline Status check_size(const EcaForward& p) {
  return check_eca(p.map, p.gate);
}
template <>
inline Status check_size(const EcaBackward& p) {
  return check_eca(p.map, p.gate);
}

template <>
inline index_t scratch_elements(const EcaForward& p) {
  return EcaScratch::make(plan_of(p), p.map, p.gate, false, false).total;
}
template <>
inline index_t scratch_elements(const EcaBackward& p) {
  return EcaScratch::make(plan_of(p), p.map, p.gate, true, p.dweight != nullptr).total;
}

// `clusters`: whether the device has them (compute capability 9.0 and up).
inline std::vector<LaunchInfo> describe(const EcaPlan& plan, const MapShape& map,
                                        const ConvGate& gate, bool backward, bool clusters) {
  const index_t map_bytes = map.bytes();
  if (!backward && plan.stage.fits) {
    const StagePlan& s = plan.stage;
    const bool exchange = s.tiles == 1 || (clusters && s.cluster() > 1);
    const index_t sides = gate.circular ? s.tiles : s.tiles - 1;
    const index_t again =
        exchange ? 0 : map.n * 2 * gate.reach() * sides * map_bytes / map.planes();
    return {{"stage_planes", "squeeze, gate, y = gate * x", map.n * s.tiles, 16, map_bytes + again,
             map_bytes}};
  }
  if (!backward)
    return {fold_info(plan.reduce, map, "squeeze", 1),
            apply_info(plan.apply, map, "gate, y = gate * x", 1, 1)};
  const ConvGradPlan& g = plan.grad;
  const index_t weights = gate.weights(map.c) * (gate.per_channel ? 1 : 32);
  return {fold_info(plan.reduce, map, "dgate = sum dy * x", 2),
          {"conv_weight_parts", "dweight in parts",
           index_t{g.channel_tiles} * g.splits * g.tap_tiles, 0, 0, 0},
          {"conv_weight_sum", "dweight", ceil_div(weights, kThreads), 0, 0, 0},
          apply_info(plan.apply, map, "dx = gate * dy + dmean", 1, 1)};
}

}  // namespace chattn::cuda
