// The gates' small matrix products: rows of samples times weights that every sample shares.
// Compiled per instruction set. Weights are read once for a tile of kTile samples.
#pragma once
#include <type_traits>

#include "engine/cpu/simd.h"
#include "engine/map.h"

namespace chattn::CHATTN_ISA {

constexpr int kTile = 4;

// Calls body(row, std::integral_constant<int, R>) for tiles of R <= kTile rows.
template <class Body>
CHATTN_INLINE void for_tiles(index_t rows, Body&& body) {
  index_t r = 0;
  for (; r + kTile <= rows; r += kTile) body(r, std::integral_constant<int, kTile>{});
  switch (rows - r) {
    case 3:
      body(r, std::integral_constant<int, 3>{});
      break;
    case 2:
      body(r, std::integral_constant<int, 2>{});
      break;
    case 1:
      body(r, std::integral_constant<int, 1>{});
      break;
    default:
      break;
  }
}

template <class W, int R>
CHATTN_INLINE void rows_tile(const acc_t<W>* a, const W* w, const W* bias, acc_t<W>* out,
                             index_t out_stride, index_t i0, index_t i1, index_t k) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  for (index_t i = i0; i < i1; ++i) {
    typename S::V sum[R] = {};
    const W* row = w + i * k;
    index_t j = 0;
    for (; j + S::kLanes <= k; j += S::kLanes) {
      const auto v = S::load(row + j);
      for (int r = 0; r < R; ++r) sum[r] += v * SA::load(a + r * k + j);
    }
    if (j < k) {
      const int count = static_cast<int>(k - j);
      const auto v = S::load_partial(row + j, count);
      for (int r = 0; r < R; ++r) sum[r] += v * SA::load_partial(a + r * k + j, count);
    }
    const acc_t<W> b = bias ? to_acc(bias[i]) : acc_t<W>(0);
    for (int r = 0; r < R; ++r) out[r * out_stride + i] = S::sum(sum[r]) + b;
  }
}

template <class W>
void matrix_rows(const acc_t<W>* a, const W* w, const W* bias, acc_t<W>* out, index_t rows,
                 index_t out_stride, index_t i0, index_t i1, index_t k) {
  for_tiles(rows, [&](index_t r, auto tile) {
    rows_tile<W, tile()>(a + r * k, w, bias, out + r * out_stride, out_stride, i0, i1, k);
  });
}

// One vector of columns, R rows: the sum over i stays in registers.
template <class W, int R>
CHATTN_INLINE void columns_tile(const acc_t<W>* a, const W* w, acc_t<W>* out, index_t i_count,
                                index_t width, index_t k, index_t count) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  typename S::V sum[R] = {};
  for (index_t i = 0; i < i_count; ++i) {
    const auto v = S::load_some(w + i * width + k, count);
    for (int r = 0; r < R; ++r) sum[r] += a[r * i_count + i] * v;
  }
  for (int r = 0; r < R; ++r) SA::store_some(out + r * width + k, sum[r], count);
}

template <class W>
void matrix_columns(const acc_t<W>* a, const W* w, acc_t<W>* out, index_t rows, index_t i_count,
                    index_t width, index_t k0, index_t k1) {
  constexpr int kL = Simd<W>::kLanes;
  for (index_t k = k0; k < k1; k += kL) {
    const index_t count = k1 - k < kL ? k1 - k : kL;
    for_tiles(rows, [&](index_t r, auto tile) {
      columns_tile<W, tile()>(a + r * i_count, w, out + r * width, i_count, width, k, count);
    });
  }
}

template <class W>
void matrix_outer(const acc_t<W>* a, const acc_t<W>* b, W* out, W* bias, index_t rows,
                  index_t i_count, index_t i0, index_t i1, index_t k) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  constexpr int kL = S::kLanes;
  for (index_t i = i0; i < i1; ++i) {
    acc_t<W> total = 0;
    for (index_t r = 0; r < rows; ++r) total += a[r * i_count + i];
    if (bias) bias[i] = from_acc<W>(total);
    for (index_t j = 0; j < k; j += kL) {
      const index_t count = k - j < kL ? k - j : kL;
      typename S::V sum{};
      for (index_t r = 0; r < rows; ++r)
        sum += a[r * i_count + i] * SA::load_some(b + r * k + j, count);
      S::store_some(out + i * k + j, sum, count);
    }
  }
}

}  // namespace chattn::CHATTN_ISA
