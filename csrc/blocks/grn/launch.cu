// Global response normalisation on a GPU: a fold, the numbers of (N, C), an apply.
//
// The sums over channels have a launch of their own: an apply pass that made them would read all C
// numbers of a sample again for every tile of 64 channels.
#include "blocks/grn/plan.h"
#include "engine/cuda/apply.cuh"
#include "engine/cuda/operands.cuh"
#include "engine/cuda/reduce.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// ---- the folds
template <class T>
struct SquareOp : Sums<T, 1> {  // sum of x*x; squared as it is added, so that loads follow loads
  using A = acc_t<T>;
  static constexpr int kInputs = 1, kStaged = 1, kBranches = -1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[1], A (&out)[1]) { out[0] = in[0]; }
  CHATTN_DEVICE static void fold(A (&s)[1], const A (&v)[1], Reference) { s[0] += v[0] * v[0]; }
};

template <class T>
struct DotSumOp : Sums<T, 2> {  // sums of g*x and of g, which is read once for both
  using A = acc_t<T>;
  static constexpr int kInputs = 2, kStaged = 2, kBranches = -1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[2], A (&out)[2]) {
    out[0] = in[0] * in[1];
    out[1] = in[0];
  }
  CHATTN_DEVICE static void fold(A (&s)[2], const A (&v)[2], Reference) {
    s[0] += v[0];
    s[1] += v[1];
  }
};

// ---- the numbers of (N, C)
// Sums over a block's threads, for all of them.
template <class A, int K>
CHATTN_DEVICE void block_sums(A (&v)[K]) {
  const Shared<A> warps = shared<A>(0, K * kWarps);
  const int tid = static_cast<int>(threadIdx.x);
  CHATTN_UNROLL
  for (int k = 0; k < K; ++k) {
    const A sum = warp_sum(v[k]);
    if (tid % kWarp == 0) warps.st(k * kWarps + tid / kWarp, sum);
  }
  __syncthreads();
  CHATTN_UNROLL
  for (int k = 0; k < K; ++k) {
    v[k] = warps.ld(k * kWarps);
    CHATTN_UNROLL
    for (int w = 1; w < kWarps; ++w) v[k] += warps.ld(k * kWarps + w);
  }
}

// A block per sample; each thread reads back the numbers that it has stored.
template <class A>
CHATTN_KERNEL(kThreads)
grn_gate(Partials<A> squares, int channels, A eps, A* norms, A* gate) {
  const int first = static_cast<int>(blockIdx.x) * channels, end = first + channels;
  const int begin = first + static_cast<int>(threadIdx.x);
  A total[1] = {};
  for (int i = begin; i < end; i += kThreads) {
    const A norm = sqrt(squares.sum(i));
    st(norms + i, norm);
    total[0] += norm;
  }
  block_sums(total);
  const A mean = total[0] / static_cast<A>(channels) + eps;
  for (int i = begin; i < end; i += kThreads) st(gate + i, ld(norms + i) / mean);
}

template <class T>
struct SlopeArgs {
  using A = acc_t<T>;
  Partials<A> dot;
  Weights<T> weight;
  const A *dgate, *norms;
  A* slope;  // (N, C): what x is multiplied by, the norm's gradient over the norm
  int c;
  A eps;
};

template <class T>
CHATTN_KERNEL(kThreads)
grn_slope(SlopeArgs<T> a) {
  using A = acc_t<T>;
  const int first = static_cast<int>(blockIdx.x) * a.c, end = first + a.c;
  const int begin = first + static_cast<int>(threadIdx.x);
  A total[2] = {};
  for (int i = begin; i < end; i += kThreads) {
    A ds = a.weight.at(i - first) * a.dot.sum(i);
    if (a.dgate != nullptr) ds += ld(a.dgate + i);
    const A norm = ld(a.norms + i);
    st(a.slope + i, ds);
    total[0] += norm;
    total[1] += ds * norm;
  }
  block_sums(total);
  const A count = static_cast<A>(a.c), mean = total[0] / count + a.eps;
  const A common = total[1] / count / mean;
  for (int i = begin; i < end; i += kThreads) {
    const A norm = ld(a.norms + i);  // of 0 has no gradient, as in PyTorch
    st(a.slope + i, norm == A(0) ? A(0) : (ld(a.slope + i) - common) / mean / norm);
  }
}

template <class T>
struct WeightArgs {
  using A = acc_t<T>;
  Partials<A> dot, sum;
  const A* gate;
  int n, c;
  WeightsOut<T> dweight, dbias;
};

template <class T>
CHATTN_KERNEL(kThreads)
grn_weights(WeightArgs<T> a) {
  using A = acc_t<T>;
  const int tid = static_cast<int>(threadIdx.x), row = tid / kGrnChannels;
  const int channel = static_cast<int>(blockIdx.x) * kGrnChannels + tid % kGrnChannels;
  A weight = 0, bias = 0;
  if (channel < a.c) {
    for (int n = row; n < a.n; n += kGrnRows) {
      const int i = n * a.c + channel;
      weight += ld(a.gate + i) * a.dot.sum(i);
      bias += a.sum.sum(i);
    }
  }
  const Shared<A> rows = shared<A>(0, 2 * kThreads);
  rows.st(tid, weight);
  rows.st(kThreads + tid, bias);
  __syncthreads();
  if (row != 0 || channel >= a.c) return;
  for (int r = 1; r < kGrnRows; ++r) {
    weight += rows.ld(r * kGrnChannels + tid);
    bias += rows.ld(kThreads + r * kGrnChannels + tid);
  }
  a.dweight.put(channel, weight);
  a.dbias.put(channel, bias);
}

// ---- the gates of the apply pass
template <class T>
struct GrnForwardGate {
  using A = acc_t<T>;
  using Element = Spread<>;
  static constexpr int kShared = 0;
  Weights<T> weight, bias;
  const A* gate;
  int c;

  CHATTN_DEVICE void prepare(const Shared<A>&, const Shared<A>& tiles, const TilePlace& p) const {
    for_gates(p, [&](int m, int i) {
      const int channel = p.c0 + i, t = m * kApplyChannels + i;
      tiles.st(t, A(1) + weight.at(channel) * ld(gate + (p.n0 + m) * c + channel));
      tiles.st(kTileSize + t, bias.at(channel));
    });
  }
};

template <class T>
struct GrnBackwardGate {
  using A = acc_t<T>;
  using Element = Select<2>;
  static constexpr int kShared = 0;
  Weights<T> weight;
  const A *gate, *slope;
  int c;

  CHATTN_DEVICE void prepare(const Shared<A>&, const Shared<A>& tiles, const TilePlace& p) const {
    for_gates(p, [&](int m, int i) {
      const int channel = p.c0 + i, plane = (p.n0 + m) * c + channel, t = m * kApplyChannels + i;
      tiles.st(t, A(1) + weight.at(channel) * ld(gate + plane));
      tiles.st(kTileSize + t, ld(slope + plane));
    });
  }
};

// ---- the launches
namespace {
using T = CHATTN_T;
using A = acc_t<T>;
}  // namespace

template <>
Status run_as<T>(const GrnForward& p, void* scratch, void* stream) {
  const GrnPlan plan = plan_of(p);
  const int c = static_cast<int>(p.map.c);
  const T* const x = static_cast<const T*>(p.x);
  A* const sums = static_cast<A*>(scratch);
  A* const scale = static_cast<A*>(p.scale);
  const bool wide = is_wide<T>(p.weight_dtype);

  const ReduceIo<T, SquareOp<T>> in{{x}, {sums}, nullptr, {}};
  CHATTN_TRY(launch_reduce("grn_squares", plan.reduce, p.map, in, stream));
  const Partials<A> squares{sums, plan.reduce.splits, p.map.planes()};
  CHATTN_TRY(launch("grn_gate", grn_gate<A>, blocks_of_threads(p.map.n, stream, sizeof(A) * kWarps),
                    squares, c, static_cast<A>(p.eps), static_cast<A*>(p.norms), scale));
  const GrnForwardGate<T> gate{{p.weight, wide}, {p.bias, wide}, scale, c};
  const ApplyIo<T, GrnForwardGate<T>::Element> io{{x}, {static_cast<T*>(p.y)}};
  return launch_apply("grn_rescale", plan.apply, p.map, io, gate, stream);
}

template <>
Status run_as<T>(const GrnBackward& p, void* scratch, void* stream) {
  const GrnPlan plan = plan_of(p);
  const int c = static_cast<int>(p.map.c);
  const index_t planes = p.map.planes(), parts = plan.reduce.splits * planes;
  const T* const dy = static_cast<const T*>(p.dy);
  const T* const x = static_cast<const T*>(p.x);
  A* const sums = static_cast<A*>(scratch);
  A* const slope = sums + 2 * parts;
  const A* const scale = static_cast<const A*>(p.scale);
  const bool wide = is_wide<T>(p.weight_dtype);

  const ReduceIo<T, DotSumOp<T>> in{{dy, x}, {sums, sums + parts}, nullptr, {}};
  CHATTN_TRY(launch_reduce("grn_sums", plan.reduce, p.map, in, stream));
  const Partials<A> dot{sums, plan.reduce.splits, planes};
  if (p.dweight != nullptr) {
    const Partials<A> sum{sums + parts, plan.reduce.splits, planes};
    const WeightArgs<T> args{
        dot, sum, scale, static_cast<int>(p.map.n), c, {p.dweight, wide}, {p.dbias, wide}};
    const index_t blocks = ceil_div(p.map.c, kGrnChannels);
    CHATTN_TRY(launch("grn_weights", grn_weights<T>,
                      blocks_of_threads(blocks, stream, sizeof(A) * 2 * kThreads), args));
  }
  if (p.dx == nullptr) return Status{};
  const SlopeArgs<T> args{dot,
                          {p.weight, wide},
                          static_cast<const A*>(p.dgate),
                          static_cast<const A*>(p.norms),
                          slope,
                          c,
                          static_cast<A>(p.eps)};
  CHATTN_TRY(launch("grn_slope", grn_slope<T>,
                    blocks_of_threads(p.map.n, stream, sizeof(A) * 2 * kWarps), args));
  const GrnBackwardGate<T> gate{{p.weight, wide}, scale, slope, c};
  const ApplyIo<T, GrnBackwardGate<T>::Element> io{{dy, x}, {static_cast<T*>(p.dx)}};
  return launch_apply("grn_gradient", plan.apply, p.map, io, gate, stream);
}

}  // namespace chattn::cuda
