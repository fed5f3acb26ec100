// The gates of the MLP for the apply pass: products with the layer that leads to the channels.
#pragma once
#include "blocks/se/mlp.cuh"
#include "blocks/se/weights.cuh"
#include "engine/cuda/apply.cuh"
#include "engine/cuda/tile_product.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// ---- the product over a block's tile
template <class A>
struct GateProduct : TileProduct<A, kApplySamples, kApplyChannels, sizeof(A) == 8 ? 16 : 32> {
  using Tile = TileProduct<A, kApplySamples, kApplyChannels, sizeof(A) == 8 ? 16 : 32>;
  static constexpr int kShared = std::max(Tile::kOperands, Tile::kSums);
  static_assert(kThreads % kApplyChannels == 0, "a thread keeps its channel");

  // body(r, sample, plane) for the planes of this thread's results.
  template <class Body>
  CHATTN_DEVICE static void each(const MlpShape<A>& shape, const TilePlace& p, Body&& body) {
    const int m = static_cast<int>(threadIdx.x / kApplyChannels);
    if (channel() >= p.channels) return;
    CHATTN_UNROLL
    for (int r = 0; r < Tile::kEach; ++r) {
      const int sample = m + r * (kThreads / kApplyChannels);
      if (sample < p.samples) body(r, sample, (p.n0 + sample) * shape.c + p.c0 + channel());
    }
  }
  CHATTN_DEVICE static int channel() { return static_cast<int>(threadIdx.x % kApplyChannels); }

  // meanwhile(): what a thread does while the operands are on their way.
  template <class Rows, class Columns, class Meanwhile>
  CHATTN_DEVICE static void run(const Shared<A>& scratch, const MlpShape<A>& shape,
                                const Rows& rows, const Columns& columns, A (&result)[Tile::kEach],
                                Meanwhile&& meanwhile) {
    Tile tile;
    tile.run(scratch, shape.rd, rows, columns, [&](int count) {
      if (count == 0) meanwhile();
    });
    tile.gather(scratch, rows.rows, result);
  }
};

// Forward: s = gate(W2 act(hidden) + b2).
template <class T>
struct MlpForwardGate {
  using A = acc_t<T>;
  using Element = Scale;
  using Product = GateProduct<A>;
  static constexpr int kShared = Product::kShared;
  MlpShape<A> shape;
  const A* hidden;
  Weights<T> w2, b2;
  A* scale_out;

  CHATTN_DEVICE void prepare(const Shared<A>& scratch, const Shared<A>& tiles,
                             const TilePlace& p) const {
    const ValueTile<A, true, true> rows{hidden,          shape.rd,  p.samples,
                                        p.n0 * shape.rd, shape.act, shape.param};
    const WeightTile<T, true> columns{{w2}, shape.rd, p.channels, p.c0 * shape.rd};
    const int channel = Product::channel();
    typename Weights<T>::Raw bias{};
    A s[Product::kEach] = {};
    Product::run(scratch, shape, rows, columns, s, [&] {
      if (b2.p != nullptr && channel < p.channels) bias = b2.asked(p.c0 + channel);
    });
    if (b2.p != nullptr) {
      CHATTN_UNROLL
      for (int r = 0; r < Product::kEach; ++r) s[r] += b2.come(bias);
    }
    activate_all<true>(shape.gate, A(0), s);
    Product::each(shape, p, [&](int r, int m, int plane) {
      tiles.st(m * kApplyChannels + channel, s[r]);
      if (p.part == 0) st(scale_out + plane, s[r]);
    });
  }
};

// Backward: what every position receives besides s*g, from dp = W1^T dh. The first blocks of the
// launch are the weights' gradients.
template <class T>
struct MlpBackwardGate {
  using A = acc_t<T>;
  using Element = Spread<>;
  using Product = GateProduct<A>;
  static constexpr int kShared = Product::kShared;
  MlpShape<A> shape;
  const A* dhidden;
  Weights<T> w1;
  const A* scale;
  WeightGrads<T> beside;

  CHATTN_DEVICE void prepare(const Shared<A>& scratch, const Shared<A>& tiles,
                             const TilePlace& p) const {
    const ValueTile<A, true> rows{dhidden, shape.rd, p.samples, p.n0 * shape.rd};
    const WeightTile<T, false> columns{{w1}, shape.c, p.channels, p.c0};
    const auto place = [&](int m) { return m * kApplyChannels + Product::channel(); };
    A dp[Product::kEach] = {};
    Product::run(scratch, shape, rows, columns, dp, [&] {
      Product::each(shape, p,
                    [&](int, int m, int plane) { tiles.st(place(m), ld(scale + plane)); });
    });
    Product::each(shape, p,
                  [&](int r, int m, int) { tiles.st(kTileSize + place(m), dp[r] / shape.hw); });
  }
};

}  // namespace chattn::cuda
