// The MLP gate on a GPU: products of (samples x channels) with weights that all samples share.
//
//   forward    squeeze | contract: h = W1 p + b1 | apply: tile of s = gate(W2 act(h) + b2), y = s x
//   backward   dot     | contract: dh = act'(h) W2^T dz
//              | weight gradients                | apply: tile of dp = W1^T dh, dx = s g + dp/HW
//
// The squeeze leaves the parts of a split plane to contract, which adds them up on the fly.
// contract itself ends in sums, however many blocks share one.
//
// A gate of one layer has no contract: finish adds up the parts, and p takes the place of the
// hidden values, dz that of their gradients, W2 that of W1.
#pragma once
#include "engine/cuda/apply.cuh"
#include "engine/cuda/arrival.cuh"
#include "engine/cuda/matmul.cuh"
#include "gates/mlp.h"
#include "gates/operands_cuda.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Sizes of the gate's matrices, all below 2^31 elements, so that 32 bits index them.
template <class A>
struct MlpShape {
  int n = 0, c = 0, rd = 0;
  Act act = Act::relu, gate = Act::sigmoid;
  A param = 0, hw = 1;
};

// ---- operands (matmul.cuh)

// (sample, channel): the pooled value, which is also written down for the backward pass.
template <class A>
struct PooledRows {
  static constexpr bool kAlongK = true;
  MlpShape<A> shape;
  Partials<A> total, top;  // top.p: null without max pooling
  A *pooled, *peak;
  int n0 = 0;
  bool store = false;
  CHATTN_DEVICE bool has(int m) const { return n0 + m < shape.n; }
  CHATTN_DEVICE int parts() const { return total.count; }
  CHATTN_DEVICE A part(int m, int c, int q) const { return total.part((n0 + m) * shape.c + c, q); }
  CHATTN_DEVICE A finish(int m, int c, A v) const {
    const int i = (n0 + m) * shape.c + c;
    v /= shape.hw;
    if (top.p != nullptr) {
      const A t = top.max(i);
      v = A(0.5) * (v + t);
      if (store) st(peak + i, t);
    }
    if (store) st(pooled + i, v);
    return v;
  }
};

// (sample, channel): the gradient before the gate function, also written down for the weights'.
template <class A>
struct GateGradRows {
  static constexpr bool kAlongK = true;
  MlpShape<A> shape;
  Partials<A> dot;
  const A *dgate, *scale;
  A* dz;
  int n0 = 0;
  bool store = false;
  CHATTN_DEVICE bool has(int m) const { return n0 + m < shape.n; }
  CHATTN_DEVICE int parts() const { return dot.count; }
  CHATTN_DEVICE A part(int m, int c, int q) const { return dot.part((n0 + m) * shape.c + c, q); }
  CHATTN_DEVICE A finish(int m, int c, A v) const {
    const int i = (n0 + m) * shape.c + c;
    if (dgate != nullptr) v += ld(dgate + i);
    v = gate_gradient(shape.gate, ld(scale + i), v);
    if (store) st(dz + i, v);
    return v;
  }
};

// Rows of a matrix stored as (row, k), or columns of one stored as (k, column).
template <class T, bool kRows>
struct WeightMatrix {
  using A = acc_t<T>;
  static constexpr bool kAlongK = kRows;
  Weights<T> w;
  int count, width;  // rows or columns there are; elements of a stored row
  int first = 0;
  CHATTN_DEVICE bool has(int i) const { return first + i < count; }
  CHATTN_DEVICE int parts() const { return 1; }
  CHATTN_DEVICE A part(int i, int k, int) const {
    return w.at(kRows ? (first + i) * width + k : k * width + first + i);
  }
  CHATTN_DEVICE A finish(int, int, A v) const { return v; }
};

// Rows of a (samples x width) matrix of accumulators: element (sample, k).
template <class A>
struct SampleRows {
  static constexpr bool kAlongK = true;
  const A* p;
  int width, n0, samples;
  CHATTN_DEVICE bool has(int m) const { return m < samples; }
  CHATTN_DEVICE int parts() const { return 1; }
  CHATTN_DEVICE A part(int m, int k, int) const { return ld(p + (n0 + m) * width + k); }
  CHATTN_DEVICE A finish(int, int, A v) const { return v; }
};

// The same of the saved hidden values, after their activation.
template <class A>
struct ActivatedRows : SampleRows<A> {
  Act act;
  A param;
  CHATTN_DEVICE A finish(int, int, A v) const { return activate(act, v, param); }
};

// Columns of a (samples x width) matrix of accumulators: element (column, sample).
template <class A>
struct SampleColumns {
  static constexpr bool kAlongK = false;
  const A* p;
  int width, first;
  CHATTN_DEVICE bool has(int i) const { return first + i < width; }
  CHATTN_DEVICE int parts() const { return 1; }
  CHATTN_DEVICE A part(int i, int n, int) const { return ld(p + n * width + first + i); }
  CHATTN_DEVICE A finish(int, int, A v) const { return v; }
};

// As ActivatedRows.
template <class A>
struct ActivatedColumns : SampleColumns<A> {
  Act act;
  A param;
  CHATTN_DEVICE A finish(int, int, A v) const { return activate(act, v, param); }
};

// ---- contract: (samples x C) times weights -> (samples x rd)
// What becomes of the sum for hidden unit j; i is its place in (samples x rd).
template <class T>
struct HiddenOut {
  using A = acc_t<T>;
  Weights<T> bias;  // p null: none
  A* hidden;        // before the activation
  CHATTN_DEVICE void put(int i, int j, A v) const {
    if (bias.p != nullptr) v += bias.at(j);
    st(hidden + i, v);
  }
};

template <class A>
struct HiddenGradOut {
  Act act;
  A param;
  const A* hidden;
  A* grad;  // before the activation
  CHATTN_DEVICE void put(int i, int, A v) const {
    st(grad + i, activation_gradient(act, ld(hidden + i), param, v));
  }
};

template <class A, int Hidden>
using ContractMatmul = MatmulTile<A, kContractSamples, Hidden,
                                  (sizeof(A) == 8 ? 16 : 32) * (Hidden == kContractNarrow ? 2 : 1)>;

// Grid: tiles (samples x hidden units), splits of C. Shared: the product's, and 4 bytes.
// The parts of a split sum are added in their order, whichever block does it.
template <class A, int Hidden, class Rows, class Columns, class Out>
CHATTN_KERNEL(kThreads, 1)
contract(MlpShape<A> shape, Rows rows, Columns columns, Out out, A* parts, Arrivals arrivals) {
  using Matmul = ContractMatmul<A, Hidden>;
  const int tile = static_cast<int>(blockIdx.x), hidden_tiles = (shape.rd - 1) / Hidden + 1;
  const int n0 = tile / hidden_tiles * kContractSamples;
  const int j0 = tile % hidden_tiles * Hidden;
  const int split = static_cast<int>(blockIdx.y), splits = static_cast<int>(gridDim.y);
  rows.n0 = n0;
  rows.store = j0 == 0;
  columns.first = j0;
  const index_t stride = static_cast<index_t>(shape.n) * shape.rd;
  const auto exists = [&](int m, int j) { return n0 + m < shape.n && j0 + j < shape.rd; };
  const auto at = [&](int m, int j) { return (n0 + m) * shape.rd + j0 + j; };
  Matmul::run(shared<A>(0, Matmul::kShared), split_at(shape.c, split, splits),
              split_at(shape.c, split + 1, splits), rows, columns, [&](int m, int j, A value) {
                if (!exists(m, j)) return;
                if (splits == 1) {
                  out.put(at(m, j), j0 + j, value);
                } else {
                  st(parts + split * stride + at(m, j), value);
                }
              });
  if (splits == 1) return;
  if (!arrivals.last(tile, splits, shared<int>(sizeof(A) * Matmul::kShared, 1))) return;

  constexpr int kOutputs = kContractSamples * Hidden / kThreads;
  const Partials<A> left{parts, splits, stride};
  A sum[kOutputs] = {};
  CHATTN_UNROLL_BY(2)
  for (int q = 0; q < left.count; ++q) {  // all of one part are in flight together
    CHATTN_UNROLL
    for (int r = 0; r < kOutputs; ++r) {
      const int e = static_cast<int>(threadIdx.x) + r * kThreads, m = e / Hidden, j = e % Hidden;
      if (exists(m, j)) sum[r] += left.part(at(m, j), q);
    }
  }
  CHATTN_UNROLL
  for (int r = 0; r < kOutputs; ++r) {
    const int e = static_cast<int>(threadIdx.x) + r * kThreads, m = e / Hidden, j = e % Hidden;
    if (exists(m, j)) out.put(at(m, j), j0 + j, sum[r]);
  }
}

// ---- one layer: (samples x C) sums are only finished
// Grid: the planes, one per thread.
template <class A, class Rows>
CHATTN_KERNEL(kThreads)
finish(MlpShape<A> shape, Rows rows) {
  const index_t i = static_cast<index_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= static_cast<index_t>(shape.n) * shape.c) return;
  const int n = static_cast<int>(i / shape.c), c = static_cast<int>(i % shape.c);
  A sum = 0;
  for (int q = 0; q < rows.parts(); ++q) sum += rows.part(n, c, q);
  rows.finish(n, c, sum);
}

// ---- gates for the apply pass
template <class A>
using ApplyMatmul = MatmulTile<A, kApplySamples, kApplyChannels, sizeof(A) == 8 ? 16 : 32, false>;

// Forward: s = gate(W2 act(hidden) + b2).
template <class T>
struct MlpForwardGate {
  using A = acc_t<T>;
  using Form = ApplyForm<>;
  static constexpr int kShared = ApplyMatmul<A>::kShared;
  MlpShape<A> shape;
  const A* hidden;
  Weights<T> w2, b2;
  A* scale_out;

  CHATTN_DEVICE void prepare(const Shared<A>& scratch, const Shared<A>& tiles,
                             const TilePlace& p) const {
    const ActivatedRows<A> rows{{hidden, shape.rd, p.n0, p.samples}, shape.act, shape.param};
    const WeightMatrix<T, true> columns{w2, p.c0 + p.channels, shape.rd, p.c0};
    ApplyMatmul<A>::run(scratch, 0, shape.rd, rows, columns, [&](int m, int i, A z) {
      if (m >= p.samples || i >= p.channels) return;
      if (b2.p != nullptr) z += b2.at(p.c0 + i);
      const A s = activate(shape.gate, z, A(0));
      tiles.st(m * kApplyChannels + i, s);
      if (p.part == 0) st(scale_out + (p.n0 + m) * shape.c + p.c0 + i, s);
    });
  }
};

// Backward: what every position receives besides s*g, from dp = W1^T dh.
template <class T, bool kMax>
struct MlpBackwardGate {
  using A = acc_t<T>;
  using Form = ApplyForm<1, 1, true, kMax>;
  static constexpr int kShared = ApplyMatmul<A>::kShared;
  MlpShape<A> shape;
  const A* dhidden;
  Weights<T> w1;
  const A *scale, *peak;
  Partials<A> count;

  CHATTN_DEVICE void prepare(const Shared<A>& scratch, const Shared<A>& tiles,
                             const TilePlace& p) const {
    const SampleRows<A> rows{dhidden, shape.rd, p.n0, p.samples};
    const WeightMatrix<T, false> columns{w1, p.c0 + p.channels, shape.c, p.c0};
    ApplyMatmul<A>::run(scratch, 0, shape.rd, rows, columns, [&](int m, int i, A dp) {
      if (m >= p.samples || i >= p.channels) return;
      const int plane = (p.n0 + m) * shape.c + p.c0 + i;
      const int t = m * kApplyChannels + i;
      tiles.st(t, ld(scale + plane));
      if constexpr (kMax) {
        dp *= A(0.5);
        tiles.st(2 * kTileSize + t, ld(peak + plane));
        tiles.st(3 * kTileSize + t, dp / count.sum(plane));
      }
      tiles.st(kTileSize + t, dp / shape.hw);
    });
  }
};

// ---- weight gradients
template <class A>
using WeightGradMatmul = MatmulTile<A, kWeightTile, kWeightTile, sizeof(A) == 8 ? 16 : 32>;

template <class T>
struct WeightGradArgs {
  using A = acc_t<T>;
  MlpShape<A> shape;
  const A *hidden, *dhidden, *dz, *pooled;
  WeightsOut<T> dw1, db1, dw2, db2;
  int channel_tiles, hidden_tiles;
};

// Grid: first the tiles of dW2 = dz^T act(hidden), then, with two layers, those of dW1 = dh^T
// pooled.
template <class T>
CHATTN_KERNEL(kThreads, 1)
weight_grads(WeightGradArgs<T> a) {
  using A = acc_t<T>;
  using Matmul = WeightGradMatmul<A>;
  const Shared<A> scratch = shared<A>(0, Matmul::kShared);
  const MlpShape<A>& shape = a.shape;
  const int c = shape.c, rd = shape.rd, tiles = a.channel_tiles * a.hidden_tiles;
  const int tile = static_cast<int>(blockIdx.x) % tiles;
  const int c0 = tile / a.hidden_tiles * kWeightTile;
  const int j0 = tile % a.hidden_tiles * kWeightTile;
  if (static_cast<int>(blockIdx.x) < tiles) {
    const ActivatedColumns<A> activated{{a.hidden, rd, j0}, shape.act, shape.param};
    Matmul::template run<true>(
        scratch, 0, shape.n, SampleColumns<A>{a.dz, c, c0}, activated,
        [&](int i, int j, A v) {
          if (c0 + i < c && j0 + j < rd) a.dw2.put((c0 + i) * rd + j0 + j, v);
        },
        [&](int i, A v) {
          if (c0 + i < c && j0 == 0) a.db2.put(c0 + i, v);
        });
  } else {
    Matmul::template run<true>(
        scratch, 0, shape.n, SampleColumns<A>{a.dhidden, rd, j0}, SampleColumns<A>{a.pooled, c, c0},
        [&](int j, int i, A v) {
          if (c0 + i < c && j0 + j < rd) a.dw1.put((j0 + j) * c + c0 + i, v);
        },
        [&](int j, A v) {
          if (j0 + j < rd && c0 == 0) a.db1.put(j0 + j, v);
        });
  }
}

}  // namespace chattn::cuda
