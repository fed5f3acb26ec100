// Per-plane reductions over a map: the squeeze (sum) and the gate's gradient (sum of g*x).
//
// One read of every input, nothing else but the results. Three ways through memory, chosen by
// plan_reduce; what is reduced is the Op. Sums are partial where the plan splits a plane:
// out[o][split][n*C + c].
#pragma once
#include <bit>

#include "engine/cuda/fast_div.h"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/plan.h"
#include "engine/cuda/reduce_io.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Merges across lanes whose numbers differ in the bits [from, to) (powers of two).
template <class Op, class A>
CHATTN_DEVICE void merge_lanes(A (&s)[Op::kOutputs], int from, int to) {
  for (int bit = to >> 1; bit >= from; bit >>= 1) {
    A other[Op::kOutputs];
    CHATTN_UNROLL
    for (int o = 0; o < Op::kOutputs; ++o) other[o] = __shfl_xor_sync(kFullMask, s[o], bit);
    Op::merge(s, other);
  }
}

// The states that a block's warps left in shared memory, `width` of them each: column i's, merged
// in the warps' order and stored.
template <class Op, class T, class A>
CHATTN_DEVICE void merge_warps(const ReduceIo<T, Op>& io, const Shared<A>& partial, int width,
                               int i, index_t out) {
  A total[Op::kOutputs] = {};
  CHATTN_UNROLL_BY(Op::kStaged == 1 && Op::kOutputs == 1 ? kWarps : 1)
  for (int w = 0; w < kWarps; ++w) {
    A s[Op::kOutputs];
    CHATTN_UNROLL
    for (int o = 0; o < Op::kOutputs; ++o) s[o] = partial.ld((o * kWarps + w) * width + i);
    Op::merge(total, s);
  }
  CHATTN_UNROLL
  for (int o = 0; o < Op::kOutputs; ++o) st(io.out[o] + out, total[o]);
}

// Blocks that must fit on a multiprocessor; 0 leaves it to the compiler, which would rather spill a
// prologue's numbers, or those of five inputs.
template <class Op>
constexpr int kReduceBlocks = sizeof(typename Op::Reference) > sizeof(double) || Op::kInputs > 4
                                  ? 2
                                  : 0;

// ---- NCHW, small planes
// Block b: planes [b*tile_planes, ...), read as one run of 16-byte words however long a plane is.
// Shared: kStaged arrays of tile_planes*hw accumulators.
template <class T, int V, class Op>
CHATTN_KERNEL(kThreads, kReduceBlocks<Op>)
reduce_tiles(ReduceIo<T, Op> io, index_t planes, int hw, int tile_planes, int lane_bits) {
  using A = acc_t<T>;
  io.arrivals.clear();
  const int tid = static_cast<int>(threadIdx.x);
  index_t first = static_cast<index_t>(blockIdx.x) * tile_planes, end = planes, skip = 0;
  if constexpr (ReduceIo<T, Op>::kSlices) {
    if (io.gap != 0) {  // a sample's planes are a run of their own
      const index_t tiles = (io.sample_planes + tile_planes - 1) / tile_planes;
      const index_t n = blockIdx.x / tiles;
      first = n * io.sample_planes + (blockIdx.x - n * tiles) * tile_planes;
      end = (n + 1) * io.sample_planes;
      skip = io.skipped(n);
    }
  }
  const int count = static_cast<int>(end - first < tile_planes ? end - first : tile_planes);
  const int length = count * hw, capacity = tile_planes * hw;
  const index_t base = first * hw;
  Shared<A> tile = shared<A>(0, Op::kStaged * capacity);

  const int vectors = length / V;
  const auto store = [&](int i, const A(&staged)[V][Op::kStaged]) {
    CHATTN_UNROLL
    for (int q = 0; q < Op::kStaged; ++q) {
      constexpr int kWord = V * sizeof(A) <= 16 ? V : 16 / static_cast<int>(sizeof(A));
      CHATTN_UNROLL
      for (int k = 0; k < V; k += kWord) {
        Vec<A, kWord> word;
        CHATTN_UNROLL
        for (int e = 0; e < kWord; ++e) word[e] = staged[k + e][q];
        tile.template stv<kWord>(q * capacity + (tid + i) * V + k, word);
      }
    }
  };
  constexpr int kBatch = kTilesBatch<V, Op>;
  io.template walk<V, kBatch>({base + tid * V, kThreads * V, skip}, vectors - tid, kThreads, store);
  if (const int i = vectors * V + tid; i < length) {
    typename ReduceIo<T, Op>::template Place<1> place;
    io.template load<1>(base + i, skip, place);
    io.template use_place<1>(i, place, [&](int i, const A(&staged)[1][Op::kStaged]) {
      CHATTN_UNROLL
      for (int q = 0; q < Op::kStaged; ++q) tile.st(q * capacity + i, staged[0][q]);
    });
  }
  __syncthreads();

  const int lanes = 1 << lane_bits, lane = tid & (lanes - 1);
  const int groups = kThreads >> lane_bits, group = tid >> lane_bits;
  for (int p0 = 0; p0 < count; p0 += groups) {  // whole warps take part in the merge
    const int p = p0 + group;
    A s[Op::kOutputs] = {};
    if (p < count) {
      const auto reference = io.of_plane(first + p);
      CHATTN_UNROLL_BY(Op::kWays.unrolled)
      for (int i = lane; i < hw; i += lanes) {
        A v[Op::kStaged];
        CHATTN_UNROLL
        for (int q = 0; q < Op::kStaged; ++q) v[q] = tile.ld(q * capacity + p * hw + i);
        io.op.fold(s, v, reference);
      }
    }
    merge_lanes<Op>(s, 1, lanes);
    if (p < count && lane == 0) {
      CHATTN_UNROLL
      for (int o = 0; o < Op::kOutputs; ++o) st(io.out[o] + first + p, s[o]);
    }
  }
}

// ---- NCHW, large planes
// A plane (or one of `splits` parts of it) belongs to one warp or to a whole block. Planes may
// start inside a 16-byte word: elements before the first and after the last whole word go one by
// one. Shared: kOutputs * kWarps accumulators.
template <class T, int V, class Op>
CHATTN_KERNEL(kThreads, kReduceBlocks<Op>)
reduce_planes(ReduceIo<T, Op> io, index_t planes, int hw, int warps_per_plane, FastDiv by_splits) {
  using A = acc_t<T>;
  io.arrivals.clear();
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp, lane = tid % kWarp;
  const bool alone = warps_per_plane == 1;
  const index_t task = static_cast<index_t>(blockIdx.x) * (alone ? kWarps : 1) + (alone ? warp : 0);
  const int splits = static_cast<int>(by_splits.divisor);
  if (task >= planes * splits) return;  // whole warps, and none of a block that has a barrier
  const index_t plane = by_splits.quotient(static_cast<int>(task));
  const int split = static_cast<int>(task - plane * splits);
  const int me = alone ? lane : tid, others = alone ? kWarp : kThreads;

  const int begin = split_at(hw, split, splits);
  const int end = split_at(hw, split + 1, splits);
  const index_t base = plane * hw;
  const index_t skip = io.kSlices ? io.skipped(io.sample_of(plane)) : 0;
  const int skew = static_cast<int>((base + begin) % V);
  const int body = min(end, begin + (skew ? V - skew : 0));
  const int tail = body + (end - body) / V * V;
  const auto reference = io.of_plane(plane);

  A s[Op::kOutputs] = {};
  const auto fold = [&](int, const auto& staged) {
    CHATTN_UNROLL
    for (const auto& numbers : staged) io.op.fold(s, numbers, reference);
  };
  const int from = body + me * V;
  io.template walk<V, kBatch<Op>>({base + from, others * V, skip}, tail - from, others * V, fold);
  const int ends[2] = {begin + me, tail + me};
  const bool within[2] = {me < body - begin, me < end - tail};
  typename ReduceIo<T, Op>::template Place<1> places[2];
  CHATTN_UNROLL
  for (int e = 0; e < 2; ++e) {
    if (within[e]) io.template load<1>(base + ends[e], skip, places[e]);
  }
  CHATTN_UNROLL
  for (int e = 0; e < 2; ++e) {
    if (within[e]) io.template use_place<1>(e, places[e], fold);
  }
  merge_lanes<Op>(s, 1, kWarp);

  const index_t out = static_cast<index_t>(split) * planes + plane;
  if (alone) {
    if (lane == 0) {
      CHATTN_UNROLL
      for (int o = 0; o < Op::kOutputs; ++o) st(io.out[o] + out, s[o]);
    }
    return;
  }
  Shared<A> partial = shared<A>(0, Op::kOutputs * kWarps);
  if (lane == 0) {
    CHATTN_UNROLL
    for (int o = 0; o < Op::kOutputs; ++o) partial.st(o * kWarps + warp, s[o]);
  }
  __syncthreads();
  if (tid == 0) merge_warps<Op>(io, partial, 1, 0, out);
}

// ---- channels_last
// A thread owns V channels and walks over positions; `cols` threads lie along a row. Shared:
// kOutputs * kWarps * cols * V accumulators.
template <class T, int V, class Op>
CHATTN_KERNEL(kThreads, kReduceBlocks<Op>)
reduce_rows(ReduceIo<T, Op> io, index_t n_count, int c_count, int hw, int col_bits,
            FastDiv by_tiles, FastDiv by_splits) {
  using A = acc_t<T>;
  io.arrivals.clear();
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp;
  const int cols = 1 << col_bits, col = tid & (cols - 1);
  const int rows = kThreads >> col_bits, row = tid >> col_bits;
  const int splits = static_cast<int>(by_splits.divisor);
  const int rest = by_tiles.quotient(static_cast<int>(blockIdx.x));
  const int tile = static_cast<int>(blockIdx.x) - rest * static_cast<int>(by_tiles.divisor);
  const index_t n = by_splits.quotient(rest);
  const int split = rest - static_cast<int>(n) * splits;
  const int c0 = tile * cols * V, c = c0 + col * V;
  const int begin = split_at(hw, split, splits);
  const int end = split_at(hw, split + 1, splits);

  A s[V][Op::kOutputs] = {};
  typename Op::Reference reference[V] = {};
  CHATTN_UNROLL
  for (int k = 0; k < V; ++k) {
    if (c < c_count) reference[k] = io.reference_of(n * c_count + c + k, c + k, c_count);
  }
  const auto fold = [&](int, const A(&staged)[V][Op::kStaged]) {
    CHATTN_UNROLL
    for (int k = 0; k < V; ++k) io.op.fold(s[k], staged[k], reference[k]);
  };
  const index_t first = n * hw + begin + row;
  const Walk walk{first * c_count + c, index_t{rows} * c_count, io.skipped(first),
                  io.skipped(rows)};
  io.template walk<V, kRowsBatch<Op>>(walk, c < c_count ? end - begin - row : 0, rows, fold);
  // Rows inside a warp, then the warps in order.
  CHATTN_UNROLL
  for (int k = 0; k < V; ++k) merge_lanes<Op>(s[k], cols, kWarp);
  const int width = cols * V;
  Shared<A> partial = shared<A>(0, Op::kOutputs * kWarps * width);
  if (tid % kWarp < cols) {
    CHATTN_UNROLL
    for (int o = 0; o < Op::kOutputs; ++o) {
      CHATTN_UNROLL
      for (int k = 0; k < V; ++k) partial.st((o * kWarps + warp) * width + col * V + k, s[k][o]);
    }
  }
  __syncthreads();
  for (int i = tid; i < width; i += kThreads) {
    if (c0 + i >= c_count) continue;
    const index_t out = (static_cast<index_t>(split) * n_count + n) * c_count + c0 + i;
    merge_warps<Op>(io, partial, width, i, out);
  }
}

// ---- launch
template <class T, int V, class Op>
Status launch_reduce_as(const char* name, const ReducePlan& plan, const MapShape& map,
                        const ReduceIo<T, Op>& io, void* stream) {
  using A = acc_t<T>;
  LaunchConfig config = blocks_of_threads(plan.blocks, stream);
  const int hw = static_cast<int>(map.hw);
  const FastDiv by_splits(static_cast<std::uint32_t>(plan.splits));
  const auto bits = [](int power) { return std::countr_zero(static_cast<unsigned>(power)); };
  if constexpr (V * sizeof(T) == 16) {
    if constexpr (Op::kWays.tiles) {
      if (plan.kind == ReducePlan::tiles) {
        config.shared_bytes = sizeof(A) * Op::kStaged * plan.tile_planes * hw;
        return launch(name, reduce_tiles<T, V, Op>, config, io, map.planes(), hw, plan.tile_planes,
                      bits(plan.lanes));
      }
    }
    if (plan.kind == ReducePlan::planes) {
      config.shared_bytes = sizeof(A) * Op::kOutputs * kWarps;
      return launch(name, reduce_planes<T, V, Op>, config, io, map.planes(), hw,
                    plan.warps_per_plane, by_splits);
    }
  }
  if constexpr (V <= Op::kWays.row_elements) {
    config.shared_bytes = sizeof(A) * Op::kOutputs * kWarps * plan.cols * V;
    const FastDiv by_tiles(static_cast<std::uint32_t>(ceil_div(map.c / V, plan.cols)));
    return launch(name, reduce_rows<T, V, Op>, config, io, map.n, static_cast<int>(map.c), hw,
                  bits(plan.cols), by_tiles, by_splits);
  }
  return Status::error("%s: no kernel for vectors of %d", name, V);
}

template <class T, class Op>
Status launch_reduce(const char* name, const ReducePlan& plan, const MapShape& map,
                     const ReduceIo<T, Op>& io, void* stream) {
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  if (plan.vec == kWidest) return launch_reduce_as<T, kWidest, Op>(name, plan, map, io, stream);
  if constexpr (kWidest > Op::kWays.row_elements) {
    if (plan.vec == Op::kWays.row_elements)
      return launch_reduce_as<T, Op::kWays.row_elements, Op>(name, plan, map, io, stream);
  }
  if constexpr (kWidest == 8 && Op::kWays.widths > 2) {
    if (plan.vec == 2) return launch_reduce_as<T, 2, Op>(name, plan, map, io, stream);
  }
  return launch_reduce_as<T, 1, Op>(name, plan, map, io, stream);
}

}  // namespace chattn::cuda
