// The gates' small matrix products: rows of samples times weights that every sample shares.
// Compiled per instruction set. Weights are read once for a tile of kTile samples.
#pragma once
#include <type_traits>

#include "engine/cpu/simd.h"
#include "engine/map.h"

namespace chattn::CHATTN_ISA {

constexpr int kTile = 8;

// R vectors as separate variables: GCC keeps an array of vectors in memory.
template <class V, int R>
struct Tile {
  V v0{}, v1{}, v2{}, v3{}, v4{}, v5{}, v6{}, v7{};

  // f(row, its vector) for each row.
  template <class F>
  CHATTN_INLINE void each(F&& f) {
    f(index_t{0}, v0);
    if constexpr (R > 1) f(index_t{1}, v1);
    if constexpr (R > 2) f(index_t{2}, v2);
    if constexpr (R > 3) f(index_t{3}, v3);
    if constexpr (R > 4) f(index_t{4}, v4);
    if constexpr (R > 5) f(index_t{5}, v5);
    if constexpr (R > 6) f(index_t{6}, v6);
    if constexpr (R > 7) f(index_t{7}, v7);
  }
};

// Calls body(row, std::integral_constant<int, R>) for tiles of R <= kTile rows.
template <int R = kTile, class Body>
CHATTN_INLINE void for_tiles(index_t row, index_t rows, Body&& body) {
  for (; row + R <= rows; row += R) body(row, std::integral_constant<int, R>{});
  if constexpr (R > 1) {
    if (row < rows) for_tiles<R / 2>(row, rows, body);
  }
}

template <class W, int R>
CHATTN_INLINE void rows_tile(const acc_t<W>* a, const W* w, const W* bias, acc_t<W>* out,
                             index_t out_stride, index_t i0, index_t i1, index_t k) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  using V = typename S::V;
  for (index_t i = i0; i < i1; ++i) {
    Tile<V, R> sums;
    const W* row = w + i * k;
    index_t j = 0;
    for (; j + S::kLanes <= k; j += S::kLanes) {
      const V v = S::load(row + j);
      sums.each([&](index_t r, V& sum) { sum += v * SA::load(a + r * k + j); });
    }
    if (j < k) {
      const int count = static_cast<int>(k - j);
      const V v = S::load_partial(row + j, count);
      sums.each([&](index_t r, V& sum) { sum += v * SA::load_partial(a + r * k + j, count); });
    }
    const acc_t<W> b = bias ? to_acc(bias[i]) : acc_t<W>(0);
    sums.each([&](index_t r, V& sum) { out[r * out_stride + i] = S::sum(sum) + b; });
  }
}

template <class W>
void matrix_rows(const acc_t<W>* a, const W* w, const W* bias, acc_t<W>* out, index_t rows,
                 index_t out_stride, index_t i0, index_t i1, index_t k) {
  for_tiles(0, rows, [&](index_t r, auto tile) {
    rows_tile<W, tile()>(a + r * k, w, bias, out + r * out_stride, out_stride, i0, i1, k);
  });
}

// One vector of columns, R rows: the sum over i stays in registers.
template <class W, int R>
CHATTN_INLINE void columns_tile(const acc_t<W>* a, const W* w, acc_t<W>* out, index_t i_count,
                                index_t width, index_t k, index_t count) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  using V = typename S::V;
  Tile<V, R> sums;
  for (index_t i = 0; i < i_count; ++i) {
    const V v = S::load_some(w + i * width + k, count);
    sums.each([&](index_t r, V& sum) { sum += a[r * i_count + i] * v; });
  }
  sums.each([&](index_t r, V& sum) { SA::store_some(out + r * width + k, sum, count); });
}

template <class W>
void matrix_columns(const acc_t<W>* a, const W* w, acc_t<W>* out, index_t rows, index_t i_count,
                    index_t width, index_t k0, index_t k1) {
  constexpr int kL = Simd<W>::kLanes;
  for (index_t k = k0; k < k1; k += kL) {
    const index_t count = k1 - k < kL ? k1 - k : kL;
    for_tiles(0, rows, [&](index_t r, auto tile) {
      columns_tile<W, tile()>(a + r * i_count, w, out + r * width, i_count, width, k, count);
    });
  }
}

template <class W>
void matrix_outer(const acc_t<W>* a, const acc_t<W>* b, W* out, W* bias, index_t rows,
                  index_t i_count, index_t i0, index_t i1, index_t k) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  using V = typename S::V;
  constexpr int kL = S::kLanes;
  for (index_t i = i0; i < i1; ++i) {
    acc_t<W> total = 0;
    for (index_t r = 0; r < rows; ++r) total += a[r * i_count + i];
    if (bias) bias[i] = from_acc<W>(total);
    index_t j = 0;
    for (; j + 4 * kL <= k; j += 4 * kL) {
      Tile<V, 4> sums;
      for (index_t r = 0; r < rows; ++r) {
        const acc_t<W> scale = a[r * i_count + i];
        sums.each([&](index_t q, V& sum) { sum += scale * SA::load(b + r * k + j + q * kL); });
      }
      sums.each([&](index_t q, V& sum) { S::store(out + i * k + j + q * kL, sum); });
    }
    for (; j < k; j += kL) {
      const index_t count = k - j < kL ? k - j : kL;
      V sum{};
      for (index_t r = 0; r < rows; ++r)
        sum += a[r * i_count + i] * SA::load_some(b + r * k + j, count);
      S::store_some(out + i * k + j, sum, count);
    }
  }
}

}  // namespace chattn::CHATTN_ISA
