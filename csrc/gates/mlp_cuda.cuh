// The MLP gate on a GPU: products of (samples x channels) with weights that all samples share.
//
//   forward    squeeze | contract: hidden = W1 p          | apply: tile of W2 act(hidden), y = s x
//   backward   dot     | contract: W2^T dz | weight grads | apply: tile of W1^T dh, dx = s g +
//   dp/HW
//
// A launch that ends in partial sums leaves adding them to its readers, who do it on the fly.
#pragma once
#include "engine/cuda/apply.cuh"
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
    v *= gate_grad_from_value(shape.gate, ld(scale + i));
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

// (sample, hidden unit): the hidden value after the activation; `out` gets the one before it.
template <class T>
struct HiddenRows {
  using A = acc_t<T>;
  static constexpr bool kAlongK = true;
  MlpShape<A> shape;
  Partials<A> product;
  Weights<T> bias;  // p null: none
  A* out;
  int n0 = 0;
  int samples = 0;
  bool store = false;
  CHATTN_DEVICE bool has(int m) const { return m < samples; }
  CHATTN_DEVICE int parts() const { return product.count; }
  CHATTN_DEVICE A part(int m, int j, int q) const {
    return product.part((n0 + m) * shape.rd + j, q);
  }
  CHATTN_DEVICE A finish(int m, int j, A v) const {
    if (bias.p != nullptr) v += bias.at(j);
    if (store) st(out + (n0 + m) * shape.rd + j, v);
    return activate(shape.act, v, shape.param);
  }
};

// The gradient before the activation, by (sample, hidden unit) or by (hidden unit, sample).
template <class A, bool kRows>
struct HiddenGrad {
  static constexpr bool kAlongK = kRows;
  MlpShape<A> shape;
  Partials<A> product;
  const A* hidden;
  int first = 0;  // sample, or hidden unit
  int count = 0;
  CHATTN_DEVICE int at(int i, int k) const {
    return kRows ? (first + i) * shape.rd + k : k * shape.rd + first + i;
  }
  CHATTN_DEVICE bool has(int i) const { return i < count; }
  CHATTN_DEVICE int parts() const { return product.count; }
  CHATTN_DEVICE A part(int i, int k, int q) const { return product.part(at(i, k), q); }
  CHATTN_DEVICE A finish(int i, int k, A v) const {
    return v * activate_grad(shape.act, ld(hidden + at(i, k)), shape.param);
  }
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

// The same of the saved hidden values, after their activation.
template <class A>
struct ActivatedColumns : SampleColumns<A> {
  Act act;
  A param;
  CHATTN_DEVICE A finish(int, int, A v) const { return activate(act, v, param); }
};

// ---- contract: (samples x C) times weights -> partial (samples x rd)
using ContractMatmul64 = MatmulTile<double, kContractTile, kContractTile, 32>;
template <class A>
using ContractMatmul = std::conditional_t<std::is_same_v<A, double>, ContractMatmul64,
                                          MatmulTile<A, kContractTile, kContractTile, 64>>;

// Grid: sample tiles, hidden tiles, splits of C.
template <class A, class Rows, class Columns>
CHATTN_KERNEL(kThreads, 1)
contract(MlpShape<A> shape, Rows rows, Columns columns, A* out) {
  using Matmul = ContractMatmul<A>;
  rows.n0 = static_cast<int>(blockIdx.x) * kContractTile;
  rows.store = blockIdx.y == 0;
  const int j0 = static_cast<int>(blockIdx.y) * kContractTile;
  columns.first = j0;
  const int split = static_cast<int>(blockIdx.z), splits = static_cast<int>(gridDim.z);
  A* const part = out + static_cast<index_t>(split) * shape.n * shape.rd;
  Matmul::run(shared<A>(0, Matmul::kShared), split_at(shape.c, split, splits),
              split_at(shape.c, split + 1, splits), rows, columns, [&](int m, int j, A value) {
                if (rows.n0 + m < shape.n && j0 + j < shape.rd)
                  st(part + (rows.n0 + m) * shape.rd + j0 + j, value);
              });
}

// ---- gates for the apply pass
template <class A>
using ApplyMatmul = MatmulTile<A, kApplySamples, kApplyChannels, sizeof(A) == 8 ? 16 : 32, false>;

// Forward: s = gate(W2 act(hidden) + b2).
template <class T>
struct MlpForwardGate {
  using A = acc_t<T>;
  static constexpr int kTiles = 1, kShared = ApplyMatmul<A>::kShared;
  HiddenRows<T> hidden;
  Weights<T> w2, b2;
  A* scale_out;

  CHATTN_DEVICE void prepare(const Shared<A>& scratch, const Shared<A>& tiles,
                             const TilePlace& p) const {
    const MlpShape<A>& shape = hidden.shape;
    HiddenRows<T> rows = hidden;
    rows.n0 = p.n0;
    rows.samples = p.samples;
    rows.store = p.c0 == 0 && p.part == 0;
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
  static constexpr int kTiles = kMax ? 4 : 2, kShared = ApplyMatmul<A>::kShared;
  HiddenGrad<A, true> dh;
  Weights<T> w1;
  const A *scale, *peak;
  Partials<A> count;

  CHATTN_DEVICE void prepare(const Shared<A>& scratch, const Shared<A>& tiles,
                             const TilePlace& p) const {
    const MlpShape<A>& shape = dh.shape;
    HiddenGrad<A, true> rows = dh;
    rows.first = p.n0;
    rows.count = p.samples;
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
  HiddenGrad<A, false> dh;
  const A *dz, *pooled;
  WeightsOut<T> dw1, db1, dw2, db2;
  int channel_tiles, hidden_tiles;
};

// Grid: first the tiles of dW2 = dz^T act(hidden), then those of dW1 = dh^T pooled.
template <class T>
CHATTN_KERNEL(kThreads, 1)
weight_grads(WeightGradArgs<T> a) {
  using A = acc_t<T>;
  using Matmul = WeightGradMatmul<A>;
  const Shared<A> scratch = shared<A>(0, Matmul::kShared);
  const MlpShape<A>& shape = a.dh.shape;
  const int c = shape.c, rd = shape.rd, tiles = a.channel_tiles * a.hidden_tiles;
  const int tile = static_cast<int>(blockIdx.x) % tiles;
  const int c0 = tile / a.hidden_tiles * kWeightTile;
  const int j0 = tile % a.hidden_tiles * kWeightTile;
  if (static_cast<int>(blockIdx.x) < tiles) {
    const ActivatedColumns<A> activated{{a.dh.hidden, rd, j0}, shape.act, shape.param};
    Matmul::template run<true>(
        scratch, 0, shape.n, SampleColumns<A>{a.dz, c, c0}, activated,
        [&](int i, int j, A v) {
          if (c0 + i < c && j0 + j < rd) a.dw2.put((c0 + i) * rd + j0 + j, v);
        },
        [&](int i, A v) {
          if (c0 + i < c && j0 == 0) a.db2.put(c0 + i, v);
        });
  } else {
    HiddenGrad<A, false> dh = a.dh;
    dh.first = j0;
    dh.count = rd - j0;
    Matmul::template run<true>(
        scratch, 0, shape.n, dh, SampleColumns<A>{a.pooled, c, c0},
        [&](int j, int i, A v) {
          if (c0 + i < c && j0 + j < rd) a.dw1.put((j0 + j) * c + c0 + i, v);
        },
        [&](int j, A v) {
          if (j0 + j < rd && c0 == 0) a.db1.put(j0 + j, v);
        });
  }
}

}  // namespace chattn::cuda
