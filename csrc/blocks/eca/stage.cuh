// Efficient channel attention forward in one launch, with one read of the map (NCHW).
#pragma once
#include "blocks/eca/gate.cuh"
#include "engine/cuda/elements.cuh"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/resident.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

template <class T>
struct StageArgs {
  using A = acc_t<T>;
  Convolution<T> conv;
  StagePlan plan;
  bool exchange = false;  // the cluster holds the whole sample
  FastDiv by_hw;
  const T* x;
  T* y;
  A *pooled, *scale;
};

// Block: a tile of channels of a sample; the blocks of a sample are neighbours.
template <class T, int V>
CHATTN_KERNEL(kThreads)
stage_planes(StageArgs<T> a) {
  using A = acc_t<T>;
  const Convolution<T>& conv = a.conv;
  const StagePlan& plan = a.plan;
  const int tid = static_cast<int>(threadIdx.x), hw = static_cast<int>(a.by_hw.divisor);
  const int n = static_cast<int>(blockIdx.x) / plan.tiles;
  const int c0 = static_cast<int>(blockIdx.x) % plan.tiles * plan.tile;
  const int channels = min(conv.c - c0, plan.tile), behind = c0 + channels;
  const int plane = n * conv.c + c0;
  // Planes at the sides; where they wrap around, all of them do.
  const bool alone = !a.exchange && plan.tiles > 1;
  const int left = alone && (c0 > 0 || conv.circular) ? conv.reach : 0;
  const int right = !alone ? 0 : min(conv.reach, conv.circular ? conv.reach : conv.c - behind);

  using Run = ResidentRun<T, V>;
  const Run own(0, plane, channels, a.by_hw);
  const Run low(plan.before, n * conv.c + (c0 > 0 ? c0 : conv.c) - left, left, a.by_hw);
  const Run high(plan.behind, n * conv.c + (behind < conv.c ? behind : 0), right, a.by_hw);
  own.load(a.x);
  low.load(a.x);
  high.load(a.x);
  __syncthreads();

  const Shared<A> means = shared<A>(plan.means, plan.tile + 2 * conv.reach);
  const int groups = kThreads / plan.lanes, group = tid / plan.lanes, lane = tid % plan.lanes;
  for (int p0 = -conv.reach; p0 < channels + conv.reach; p0 += groups) {
    const int p = p0 + group;
    A sum = 0;
    // Not one loop over a chosen run: to choose, the compiler keeps all three in local memory.
    if (p >= 0 && p < channels) {
      sum = own.lane_sum(p, hw, lane, plan.lanes);
    } else if (p < 0 && p >= -left) {
      sum = low.lane_sum(p + left, hw, lane, plan.lanes);
    } else if (p >= channels && p < channels + right) {
      sum = high.lane_sum(p - channels, hw, lane, plan.lanes);
    }
    for (int bit = plan.lanes >> 1; bit > 0; bit >>= 1) sum += __shfl_xor_sync(kFullMask, sum, bit);
    if (lane == 0 && p < channels + conv.reach) {
      means.st(conv.reach + p, sum / conv.hw);
      if (p >= 0 && p < channels) st(a.pooled + plane + p, sum / conv.hw);
    }
  }
  cluster_sync();

  const Shared<A> gates = shared<A>(plan.gates, plan.tile);
  for (int i = tid; i < channels; i += kThreads) {
    A z = 0;
    for (int j = 0; j < conv.taps; ++j) {
      const int near = i + j - conv.reach;
      A mean = 0;
      if (alone || (near >= 0 && near < channels)) {
        mean = means.ld(conv.reach + near);
      } else if (const int channel = conv.wrapped(c0 + near); channel >= 0) {
        const int rank = channel / plan.tile;
        mean = means.at_rank(rank).ld(conv.reach + channel - rank * plan.tile);
      }
      z += conv.weight(c0 + i, j) * mean;
    }
    const A s = activate(conv.gate, z, A(0));
    gates.st(i, s);
    st(a.scale + plane + i, s);
  }
  cluster_sync();

  own.template emit<Scale>(a.y, a.by_hw,
                           [&](int channel, A(&gate)[1]) { gate[0] = gates.ld(channel); });
}

template <class T>
Status launch_stage(const char* name, StageArgs<T> args, const MapShape& map, void* stream) {
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  args.by_hw = FastDiv(static_cast<std::uint32_t>(map.hw));
  LaunchConfig config =
      blocks_of_threads(map.n * args.plan.tiles, stream, static_cast<std::size_t>(args.plan.bytes));
  // The means are added up in the same order either way.
  if (has_clusters(stage_planes<T, kWidest>)) config.cluster = args.plan.cluster();
  args.exchange = static_cast<int>(config.cluster) == args.plan.tiles;
  return launch(name, stage_planes<T, kWidest>, config, args);
}

}  // namespace chattn::cuda
