// Per-plane reductions over a map: the squeeze (sum, max) and the gate's gradient (sum of g*x).
//
// One read of every input, nothing else but the results. Three ways through memory, chosen by
// plan_reduce; what is reduced is the Op. Sums are partial where the plan splits a plane:
// out[o][split][n*C + c].
#pragma once
#include "engine/cuda/arrival.cuh"
#include "engine/cuda/plan.h"
#include "engine/map.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// ---- what is reduced
// An Op turns the
// inputs' values at a position into kStaged numbers, and folds those into kOutputs. A Reference is
// what the fold needs to know of a plane: load(memory, plane, C). Inputs from kBranches on may be
// slices of a larger map (kBranches < 0: none).

template <class A>
struct Nothing {
  CHATTN_DEVICE static Nothing load(const A*, index_t, index_t) { return {}; }
};
template <class A>
struct NumberOfPlane {
  A value;
  CHATTN_DEVICE static NumberOfPlane load(const A* numbers, index_t plane, index_t) {
    return {ld(numbers + plane)};
  }
};
template <class A, int M>
struct PrologueOfPlane {  // of M branches, in (2, M, C): scale and shift
  A scale[M], shift[M];
  CHATTN_DEVICE static PrologueOfPlane load(const A* numbers, index_t plane, index_t c_count) {
    PrologueOfPlane r;
    const index_t c = plane % c_count;
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      r.scale[m] = ld(numbers + m * c_count + c);
      r.shift[m] = ld(numbers + (M + m) * c_count + c);
    }
    return r;
  }
};

template <class T, int M = 1>
struct SumOp {  // sum over M inputs
  using A = acc_t<T>;
  static constexpr int kInputs = M, kStaged = 1, kOutputs = 1, kBranches = M > 1 ? 0 : -1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[kInputs], A (&out)[kStaged]) {
    out[0] = in[0];
    CHATTN_UNROLL
    for (int m = 1; m < M; ++m) out[0] += in[m];
  }
  CHATTN_DEVICE static A first(int) { return A(0); }
  CHATTN_DEVICE static void fold(A (&s)[kOutputs], const A (&v)[kStaged], Reference) {
    s[0] += v[0];
  }
  CHATTN_DEVICE static A merge(int, A a, A b) { return a + b; }
};

template <class T, int M>
struct PrologueSumOp {  // sum over M inputs, each through its prologue
  using A = acc_t<T>;
  static constexpr int kInputs = M, kStaged = M, kOutputs = 1, kBranches = 0;
  using Reference = PrologueOfPlane<A, M>;
  CHATTN_DEVICE static void stage(const A (&in)[M], A (&out)[M]) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) out[m] = in[m];
  }
  CHATTN_DEVICE static A first(int) { return A(0); }
  CHATTN_DEVICE static void fold(A (&s)[1], const A (&v)[M], const Reference& r) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) s[0] += nan_max(A(0), r.scale[m] * v[m] + r.shift[m]);
  }
  CHATTN_DEVICE static A merge(int, A a, A b) { return a + b; }
};

template <class T>
struct SumMaxOp {  // sum and max of one input
  using A = acc_t<T>;
  static constexpr int kInputs = 1, kStaged = 1, kOutputs = 2, kBranches = -1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[1], A (&out)[1]) { out[0] = in[0]; }
  CHATTN_DEVICE static A first(int o) { return o == 0 ? A(0) : -A(INFINITY); }
  CHATTN_DEVICE static void fold(A (&s)[2], const A (&v)[1], Reference) {
    s[0] += v[0];
    s[1] = nan_max(s[1], v[0]);
  }
  CHATTN_DEVICE static A merge(int o, A a, A b) { return o == 0 ? a + b : nan_max(a, b); }
};

template <class T>
struct DotOp {  // sum of g*x
  using A = acc_t<T>;
  static constexpr int kInputs = 2, kStaged = 1, kOutputs = 1, kBranches = -1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[2], A (&out)[1]) { out[0] = in[0] * in[1]; }
  CHATTN_DEVICE static A first(int) { return A(0); }
  CHATTN_DEVICE static void fold(A (&s)[1], const A (&v)[1], Reference) { s[0] += v[0]; }
  CHATTN_DEVICE static A merge(int, A a, A b) { return a + b; }
};

template <class T>
struct DotCountOp {  // sum of g*x, and how many x equal the plane's maximum
  using A = acc_t<T>;
  static constexpr int kInputs = 2, kStaged = 2, kOutputs = 2, kBranches = -1;
  using Reference = NumberOfPlane<A>;
  CHATTN_DEVICE static void stage(const A (&in)[2], A (&out)[2]) {
    out[0] = in[0] * in[1];
    out[1] = in[1];
  }
  CHATTN_DEVICE static A first(int) { return A(0); }
  CHATTN_DEVICE static void fold(A (&s)[2], const A (&v)[2], Reference maximum) {
    s[0] += v[0];
    s[1] += v[1] == maximum.value ? A(1) : A(0);
  }
  CHATTN_DEVICE static A merge(int, A a, A b) { return a + b; }
};

template <class T, int M>
struct DotsOp {  // sums of g*x_m for M branches
  using A = acc_t<T>;
  static constexpr int kInputs = M + 1, kStaged = M, kOutputs = M, kBranches = 1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[kInputs], A (&out)[M]) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) out[m] = in[0] * in[m + 1];
  }
  CHATTN_DEVICE static A first(int) { return A(0); }
  CHATTN_DEVICE static void fold(A (&s)[M], const A (&v)[M], Reference) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) s[m] += v[m];
  }
  CHATTN_DEVICE static A merge(int, A a, A b) { return a + b; }
};

template <class T, class Op>
struct ReduceIo {
  using A = acc_t<T>;
  static constexpr bool kSlices = Op::kBranches >= 0;
  const T* in[Op::kInputs];
  A* out[Op::kOutputs];
  const A* reference;  // what the Op's References are loaded from, or null
  Arrivals arrivals;   // cleared for the next launch
  index_t gap = 0;     // of the branches: elements between samples (channels_last: positions)
  index_t sample_planes = 1;  // C, where an Op asks for it

  // Elements that the branches' samples (channels_last: positions) before the i-th skip.
  CHATTN_DEVICE index_t skipped(index_t i) const { return kSlices ? i * gap : 0; }

  template <int V>
  CHATTN_DEVICE void stage(index_t offset, index_t skip, A (&staged)[V][Op::kStaged]) const {
    Vec<T, V> v[Op::kInputs];
    CHATTN_UNROLL
    for (int m = 0; m < Op::kInputs; ++m)
      v[m] = load_vec<V>(in[m] + offset + (kSlices && m >= Op::kBranches ? skip : 0));
    CHATTN_UNROLL
    for (int k = 0; k < V; ++k) {
      A values[Op::kInputs];
      CHATTN_UNROLL
      for (int m = 0; m < Op::kInputs; ++m) values[m] = to_acc(v[m][k]);
      Op::stage(values, staged[k]);
    }
  }
  CHATTN_DEVICE typename Op::Reference of_plane(index_t plane) const {
    return Op::Reference::load(reference, plane, sample_planes);
  }
};

template <class Op, class A>
CHATTN_DEVICE void start(A (&s)[Op::kOutputs]) {
  CHATTN_UNROLL
  for (int o = 0; o < Op::kOutputs; ++o) s[o] = Op::first(o);
}

// Merges across lanes whose numbers differ in the bits [from, to) (powers of two).
template <class Op, class A>
CHATTN_DEVICE void merge_lanes(A (&s)[Op::kOutputs], int from, int to) {
  for (int bit = to >> 1; bit >= from; bit >>= 1) {
    CHATTN_UNROLL
    for (int o = 0; o < Op::kOutputs; ++o)
      s[o] = Op::merge(o, s[o], __shfl_xor_sync(kFullMask, s[o], bit));
  }
}

// Blocks that must fit on a multiprocessor; 0 leaves it to the compiler, which would rather spill a
// prologue's numbers.
template <class Op>
constexpr int kReduceBlocks = sizeof(typename Op::Reference) > sizeof(double) ? 2 : 0;

// Loads in flight: iterations that are unrolled; fewer where each has many inputs, for registers.
template <class Op>
constexpr int kUnrolled = Op::kInputs > 2 ? 2 : 4;

// ---- NCHW, small planes
// Block b: planes
// [b*tile_planes, ...), read as one run of 16-byte words however long a plane is. Shared: kStaged
// arrays of tile_planes*hw accumulators.
template <class T, int V, class Op>
CHATTN_KERNEL(kThreads, kReduceBlocks<Op>)
reduce_tiles(ReduceIo<T, Op> io, index_t planes, int hw, int tile_planes, int lanes) {
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
  CHATTN_UNROLL_BY(kUnrolled<Op> / 2)
  for (int i = tid; i < vectors; i += kThreads) {
    A staged[V][Op::kStaged];
    io.template stage<V>(base + i * V, skip, staged);
    CHATTN_UNROLL
    for (int q = 0; q < Op::kStaged; ++q) {
      constexpr int kWord = V * sizeof(A) <= 16 ? V : 16 / static_cast<int>(sizeof(A));
      CHATTN_UNROLL
      for (int k = 0; k < V; k += kWord) {
        Vec<A, kWord> word;
        CHATTN_UNROLL
        for (int e = 0; e < kWord; ++e) word[e] = staged[k + e][q];
        tile.template stv<kWord>(q * capacity + i * V + k, word);
      }
    }
  }
  for (int i = vectors * V + tid; i < length; i += kThreads) {
    A staged[1][Op::kStaged];
    io.template stage<1>(base + i, skip, staged);
    CHATTN_UNROLL
    for (int q = 0; q < Op::kStaged; ++q) tile.st(q * capacity + i, staged[0][q]);
  }
  __syncthreads();

  const int groups = kThreads / lanes, group = tid / lanes, lane = tid % lanes;
  for (int p0 = 0; p0 < count; p0 += groups) {  // whole warps take part in the merge
    const int p = p0 + group;
    A s[Op::kOutputs];
    start<Op>(s);
    if (p < count) {
      const auto reference = io.of_plane(first + p);
      for (int i = lane; i < hw; i += lanes) {
        A v[Op::kStaged];
        CHATTN_UNROLL
        for (int q = 0; q < Op::kStaged; ++q) v[q] = tile.ld(q * capacity + p * hw + i);
        Op::fold(s, v, reference);
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
// A plane (or one of
// `splits` parts of it) belongs to one warp or to a whole block. Planes may start inside a 16-byte
// word: elements before the first and after the last whole word go one by one. Shared: kOutputs *
// kWarps accumulators.
template <class T, int V, class Op>
CHATTN_KERNEL(kThreads, kReduceBlocks<Op>)
reduce_planes(ReduceIo<T, Op> io, index_t planes, int hw, int warps_per_plane, int splits) {
  using A = acc_t<T>;
  io.arrivals.clear();
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp, lane = tid % kWarp;
  const bool alone = warps_per_plane == 1;
  const index_t task = static_cast<index_t>(blockIdx.x) * (alone ? kWarps : 1) + (alone ? warp : 0);
  if (task >= planes * splits) return;  // whole warps, and none of a block that has a barrier
  const index_t plane = task / splits;
  const int split = static_cast<int>(task % splits);
  const int me = alone ? lane : tid, others = alone ? kWarp : kThreads;

  const int begin = split_at(hw, split, splits);
  const int end = split_at(hw, split + 1, splits);
  const index_t base = plane * hw;
  const index_t skip = io.kSlices ? io.skipped(plane / io.sample_planes) : 0;
  const int skew = static_cast<int>((base + begin) % V);
  const int body = min(end, begin + (skew ? V - skew : 0));
  const int tail = body + (end - body) / V * V;
  const auto reference = io.of_plane(plane);

  A s[Op::kOutputs];
  start<Op>(s);
  CHATTN_UNROLL_BY(4)
  for (int i = body + me * V; i < tail; i += others * V) {
    A staged[V][Op::kStaged];
    io.template stage<V>(base + i, skip, staged);
    CHATTN_UNROLL
    for (int k = 0; k < V; ++k) Op::fold(s, staged[k], reference);
  }
  const auto fold_one = [&](int i) {
    A staged[1][Op::kStaged];
    io.template stage<1>(base + i, skip, staged);
    Op::fold(s, staged[0], reference);
  };
  if (me < body - begin) fold_one(begin + me);
  if (me < end - tail) fold_one(tail + me);
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
  CHATTN_UNROLL
  for (int o = 0; o < Op::kOutputs; ++o) {  // io.out[tid] would put all of io on the stack
    if (tid != o) continue;
    A total = partial.ld(o * kWarps);
    CHATTN_UNROLL
    for (int w = 1; w < kWarps; ++w) total = Op::merge(o, total, partial.ld(o * kWarps + w));
    st(io.out[o] + out, total);
  }
}

// ---- channels_last
// A thread owns V
// channels and walks over positions; `cols` threads lie along a row. Shared: kOutputs * kWarps *
// cols * V accumulators.
template <class T, int V, class Op>
CHATTN_KERNEL(kThreads, kReduceBlocks<Op>)
reduce_rows(ReduceIo<T, Op> io, index_t n_count, index_t c_count, int hw, int cols, int splits) {
  using A = acc_t<T>;
  io.arrivals.clear();
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp;
  const int col = tid % cols, row = tid / cols, rows = kThreads / cols;
  const index_t channel_tiles = (c_count / V + cols - 1) / cols;
  const index_t tile = static_cast<index_t>(blockIdx.x) % channel_tiles;
  const index_t rest = static_cast<index_t>(blockIdx.x) / channel_tiles;
  const int split = static_cast<int>(rest % splits);
  const index_t n = rest / splits;
  const index_t c0 = tile * cols * V, c = c0 + col * V;
  const int begin = split_at(hw, split, splits);
  const int end = split_at(hw, split + 1, splits);

  A s[V][Op::kOutputs];
  typename Op::Reference reference[V] = {};
  CHATTN_UNROLL
  for (int k = 0; k < V; ++k) {
    start<Op>(s[k]);
    if (c < c_count) reference[k] = io.of_plane(n * c_count + c + k);
  }
  if (c < c_count) {
    CHATTN_UNROLL_BY(kUnrolled<Op>)
    for (int i = begin + row; i < end; i += rows) {
      A staged[V][Op::kStaged];
      io.template stage<V>((n * hw + i) * c_count + c, io.skipped(n * hw + i), staged);
      CHATTN_UNROLL
      for (int k = 0; k < V; ++k) Op::fold(s[k], staged[k], reference[k]);
    }
  }
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
    CHATTN_UNROLL
    for (int o = 0; o < Op::kOutputs; ++o) {
      A total = partial.ld(o * kWarps * width + i);
      CHATTN_UNROLL
      for (int w = 1; w < kWarps; ++w)
        total = Op::merge(o, total, partial.ld((o * kWarps + w) * width + i));
      st(io.out[o] + (static_cast<index_t>(split) * n_count + n) * c_count + c0 + i, total);
    }
  }
}

// ---- launch
template <class T, int V, class Op>
Status launch_reduce_as(const char* name, const ReducePlan& plan, const MapShape& map,
                        const ReduceIo<T, Op>& io, void* stream) {
  using A = acc_t<T>;
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.blocks));
  config.block = dim3(kThreads);
  config.stream = stream;
  const int hw = static_cast<int>(map.hw);
  if constexpr (V * sizeof(T) == 16) {
    if (plan.kind == ReducePlan::tiles) {
      config.shared_bytes = sizeof(A) * Op::kStaged * plan.tile_planes * hw;
      return launch(name, reduce_tiles<T, V, Op>, config, io, map.planes(), hw, plan.tile_planes,
                    plan.lanes);
    }
    if (plan.kind == ReducePlan::planes) {
      config.shared_bytes = sizeof(A) * Op::kOutputs * kWarps;
      return launch(name, reduce_planes<T, V, Op>, config, io, map.planes(), hw,
                    plan.warps_per_plane, plan.splits);
    }
  }
  config.shared_bytes = sizeof(A) * Op::kOutputs * kWarps * plan.cols * V;
  return launch(name, reduce_rows<T, V, Op>, config, io, map.n, map.c, hw, plan.cols, plan.splits);
}

template <class T, class Op>
Status launch_reduce(const char* name, const ReducePlan& plan, const MapShape& map,
                     const ReduceIo<T, Op>& io, void* stream) {
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  if (plan.vec == kWidest) return launch_reduce_as<T, kWidest, Op>(name, plan, map, io, stream);
  if constexpr (kWidest == 8) {
    if (plan.vec == 2) return launch_reduce_as<T, 2, Op>(name, plan, map, io, stream);
  }
  return launch_reduce_as<T, 1, Op>(name, plan, map, io, stream);
}

}  // namespace chattn::cuda
