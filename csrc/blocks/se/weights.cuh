// The gradients of the MLP gate's weights, as blocks of the launch that writes dx: they share its
// idle time, and the launch.
//
// First the tiles of dW2 = dz^T act(hidden), channels by hidden units, then, with two layers, those
// of dW1 = dh^T pooled, hidden units by channels.
#pragma once
#include "blocks/se/mlp.cuh"
#include "engine/cuda/tile_product.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

template <class T>
struct WeightGrads {
  using A = acc_t<T>;
  using Tile = TileProduct<A, kWeightRows, kWeightColumns, sizeof(A) == 8 ? 4 : 16>;
  static constexpr int kShared = Tile::kOperands;
  MlpShape<A> shape;
  const A *hidden, *dhidden, *dz, *pooled;
  WeightsOut<T> dw1, db1, dw2, db2;
  int blocks = 0;  // 0: not wanted

  CHATTN_DEVICE void run(int block) const {
    const int c = shape.c, rd = shape.rd;
    const int tiles = weight_tiles(c, rd);
    const bool first = block >= tiles;  // of the first layer
    const int height = first ? rd : c, width = first ? c : rd;
    const int across = (width - 1) / kWeightColumns + 1, tile = first ? block - tiles : block;
    const int m0 = tile / across * kWeightRows, n0 = tile % across * kWeightColumns;
    const ValueTile<A, false> rows{first ? dhidden : dz, height, height - m0, m0};
    const ValueTile<A, false, true> columns{
        first ? pooled : hidden,           width,      width - n0, n0,
        first ? Act::identity : shape.act, shape.param};
    const WeightsOut<T> dw = first ? dw1 : dw2, db = first ? db1 : db2;

    const Shared<A> scratch = shared<A>(0, kShared);
    const int tid = static_cast<int>(threadIdx.x);
    A total = A(0);  // of row tid: the bias's gradient
    Tile sums;
    sums.run(scratch, shape.n, rows, columns, [&](int count) {
      if (tid >= kWeightRows || n0 > 0) return;
      for (int k = 0; k < count; ++k) total += scratch.ld(k * Tile::kStrideM + tid);
    });
    if (tid < kWeightRows && n0 == 0 && m0 + tid < height) db.put(m0 + tid, total);
    sums.each([&](int m, int n, A v) {
      if (m0 + m < height && n0 + n < width) dw.put((m0 + m) * width + n0 + n, v);
    });
  }
};

}  // namespace chattn::cuda
