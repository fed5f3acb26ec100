// The MLP gate on a GPU: products of (samples x channels) with weights that all samples share.
//
//   forward    squeeze | product: h = W1 p + b1 | apply: tile of s = gate(W2 act(h) + b2), y = s x
//   backward   dot     | product: dh = act'(h) W2^T dz
//              | weight gradients               | apply: tile of dp = W1^T dh, dx = s g + dp/HW
//
// The squeeze leaves the parts of a split plane to the product, which adds them up on the fly.
//
// A gate of one layer has no product: finish adds up the parts, and p takes the place of the
// hidden values, dz that of their gradients, W2 that of W1. So it does with max pooling, whose
// product starts from finished values.
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

// ---- sums that are only finished
// The pooled value of plane i.
template <class A>
struct PooledPlane {
  Partials<A> total, top;  // top.p: null without max pooling
  A scale;                 // 1 / HW
  A *pooled, *peak;
  CHATTN_DEVICE void finish(int i) const {
    A v = total.sum(i) * scale;
    if (top.p != nullptr) {
      const A t = top.max(i);
      v = A(0.5) * (v + t);
      st(peak + i, t);
    }
    st(pooled + i, v);
  }
};

// The gradient in front of the gate function.
template <class A>
struct GateGradPlane {
  Partials<A> dot;
  Act gate;
  const A *scale, *dgate;  // dgate: null, or the gradient of a gate that was returned
  A* dz;
  CHATTN_DEVICE void finish(int i) const {
    A v = dot.sum(i);
    if (dgate != nullptr) v += ld(dgate + i);
    st(dz + i, gate_gradient(gate, ld(scale + i), v));
  }
};

// Grid: the planes, one per thread.
template <class Plane>
CHATTN_KERNEL(kThreads)
finish(index_t planes, Plane plane) {
  const index_t i = static_cast<index_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < planes) plane.finish(static_cast<int>(i));
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
