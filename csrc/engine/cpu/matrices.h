// The gates' small matrix products: rows of samples times weights that every sample shares.
// Compiled per instruction set. Weights are read once for a tile of kTile samples.
#pragma once
#include "engine/cpu/simd.h"
#include "engine/map.h"

namespace chattn::CHATTN_ISA {

constexpr int kTile = 8;

// Rows of a matrix lie a power of two apart as a rule, so that the same column of all of them falls
// into one set of the first-level cache and evicts itself. Tiles of rows are therefore packed: what
// is read together lies together.
constexpr index_t kPacked = 512;  // columns of a packed tile of kTile rows, and of a partial sum

// packed[v * R + r] = vector v of row r, zero beyond `length`.
template <int R, class V, class A>
CHATTN_INLINE void pack_vectors(const A* a, index_t stride, index_t length, V* packed) {
  using S = Simd<A>;
  for (index_t j = 0; j < length; j += S::kLanes)
    for (index_t r = 0; r < R; ++r) *packed++ = S::load_some(a + r * stride + j, length - j);
}

template <class W, int R>
CHATTN_INLINE void rows_tile(const acc_t<W>* a, const W* w, const W* bias, acc_t<W>* out,
                             index_t out_stride, index_t i0, index_t i1, index_t k) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  using V = typename S::V;
  constexpr index_t kL = S::kLanes;
  // One sum at a time waits for itself: few samples leave registers for several rows of weights.
  constexpr int kRows = R <= 2 && kL >= 4 ? 4 : R <= 4 ? 2 : 1;
  V packed[kPacked / kL * kTile];
  // Where all columns fit, rows of weights are read from end to end.
  const index_t vectors = (k + kL - 1) / kL;
  const index_t panel = vectors * kL * R <= kPacked * kTile ? k : kPacked;
  for (index_t b0 = 0; b0 < k; b0 += panel) {
    const index_t b1 = k - b0 < panel ? k : b0 + panel;
    pack_vectors<R>(a + b0, k, b1 - b0, packed);
    for (index_t i = i0; i < i1; i += kL) {
      const index_t outputs = i1 - i < kL ? i1 - i : kL;
      for (index_t k0 = b0; k0 < b1; k0 += kPacked) {
        const index_t length = b1 - k0 < kPacked ? b1 - k0 : kPacked;
        V parts[R][kL] = {};
        for (index_t p = 0; p < outputs; p += kRows) {
          // Beyond the last output the lanes are not stored.
          const W* row[kRows];
          for (index_t q = 0; q < kRows; ++q)
            row[q] = w + (p + q < outputs ? i + p + q : i) * k + k0;
          const V* column = packed + (k0 - b0) / kL * R;
          Tile<V, kRows * R> sums;
          for_vectors<kL>(length, [&](index_t j, index_t count) {
            sums.each([&](index_t q, V& sum) {
              sum += S::load_some(row[q / R] + j, count) * column[q % R];
            });
            column += R;
          });
          sums.each([&](index_t q, V& sum) { parts[q % R][p + q / R] = sum; });
        }
        for (index_t r = 0; r < R; ++r) {
          acc_t<W>* o = out + r * out_stride + i;
          V v = S::sums(parts[r]);
          if (k0 > 0) {
            v += SA::load_some(o, outputs);
          } else if (bias) {
            v += S::load_some(bias + i, outputs);
          }
          SA::store_some(o, v, outputs);
        }
      }
    }
  }
}

// Rows of few weights, as behind few hidden units: a vector of outputs has its weights in kMost
// vectors, one for each of the k inputs, and sums need not be taken across lanes.
template <class W, int kMost>
CHATTN_INLINE void narrow_rows(const acc_t<W>* a, const W* w, const W* bias, acc_t<W>* out,
                               index_t rows, index_t out_stride, index_t i0, index_t i1,
                               index_t k) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  using V = typename S::V;
  for_vectors<S::kLanes>(i1 - i0, [&](index_t i, index_t count) {
    i += i0;
    V column[kMost] = {};
    for (index_t j = 0; j < k; ++j)
      for (index_t lane = 0; lane < count; ++lane) column[j][lane] = to_acc(w[(i + lane) * k + j]);
    const V first = bias ? S::load_some(bias + i, count) : V{};
    for (index_t r = 0; r < rows; ++r) {
      V sum = a[r * k] * column[0];
      for (index_t j = 1; j < k; ++j) sum += a[r * k + j] * column[j];
      SA::store_some(out + r * out_stride + i, sum + first, count);
    }
  });
}

template <class W>
void matrix_rows(const acc_t<W>* a, const W* w, const W* bias, acc_t<W>* out, index_t rows,
                 index_t out_stride, index_t i0, index_t i1, index_t k) {
  constexpr int kNarrow = 8;
  if (k <= kNarrow) return narrow_rows<W, kNarrow>(a, w, bias, out, rows, out_stride, i0, i1, k);
  for_tiles<kTile>(0, rows, [&](index_t r, auto tile) {
    rows_tile<W, tile()>(a + r * k, w, bias, out + r * out_stride, out_stride, i0, i1, k);
  });
}

// Rows of a matrix, `width` elements long, that are walked down at once. Long ones lie a page or
// more apart each, and a core knows the addresses of few pages.
template <class W>
CHATTN_INLINE index_t rows_at_once(index_t width) {
  constexpr index_t kPages = 32, kPageBytes = 4096;
  const index_t in_a_page = kPageBytes / (width * static_cast<index_t>(sizeof(W)));
  return kPages * (in_a_page > 1 ? in_a_page : 1);
}

// Some vectors of columns, R rows: the sums over i in [i0, i1) stay in registers.
template <class W, int R, int kVectors>
CHATTN_INLINE void columns_tile(const acc_t<W>* a, const W* w, acc_t<W>* out, index_t i_count,
                                index_t i0, index_t i1, index_t width, index_t count) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  using V = typename S::V;
  Tile<V, R * kVectors> sums;
  if (i0 > 0)
    sums.each([&](index_t q, V& sum) {
      sum = SA::load_some(out + q / kVectors * width + q % kVectors * S::kLanes, count);
    });
  for (index_t i = i0; i < i1; ++i)
    sums.each([&](index_t q, V& sum) {
      sum += a[q / kVectors * i_count + i] *
             S::load_some(w + i * width + q % kVectors * S::kLanes, count);
    });
  sums.each([&](index_t q, V& sum) {
    SA::store_some(out + q / kVectors * width + q % kVectors * S::kLanes, sum, count);
  });
}

// The columns that whole pieces of kVectors vectors of a row of w have, for R rows; returns the
// first that is left.
template <class W, int R, int kVectors>
CHATTN_INLINE index_t wide_columns(const acc_t<W>* a, const W* w, acc_t<W>* out, index_t i_count,
                                   index_t i0, index_t i1, index_t width, index_t k0, index_t k1) {
  constexpr index_t kL = Simd<W>::kLanes;
  for (; k0 + kVectors * kL <= k1; k0 += kVectors * kL)
    columns_tile<W, R, kVectors>(a, w + k0, out + k0, i_count, i0, i1, width, kL);
  return k0;
}

// Few rows leave registers for more columns: then w is read in longer pieces.
template <class W>
void matrix_columns(const acc_t<W>* a, const W* w, acc_t<W>* out, index_t rows, index_t i_count,
                    index_t width, index_t k0, index_t k1) {
  constexpr index_t kL = Simd<W>::kLanes;
  const index_t at_once = rows_at_once<W>(width);
  for (index_t i0 = 0; i0 < i_count; i0 += at_once) {
    const index_t i1 = i_count - i0 < at_once ? i_count : i0 + at_once;
    index_t first = k0;
    if (rows == 1) first = wide_columns<W, 1, 8>(a, w, out, i_count, i0, i1, width, k0, k1);
    if (rows == 2) first = wide_columns<W, 2, 4>(a, w, out, i_count, i0, i1, width, k0, k1);
    for_vectors<kL>(k1 - first, [&](index_t k, index_t count) {
      k += first;
      for_tiles<kTile>(0, rows, [&](index_t r, auto tile) {
        columns_tile<W, tile(), 1>(a + r * i_count, w + k, out + r * width + k, i_count, i0, i1,
                                   width, count);
      });
    });
  }
}

// R rows of the output and a vector or two of its columns; `b` has that many columns, too.
template <class W, int R, int kVectors>
CHATTN_INLINE void outer_tile(const acc_t<W>* a, index_t a_stride, const acc_t<W>* b,
                              index_t b_stride, index_t rows, W* out, index_t out_stride,
                              index_t count) {
  using S = Simd<W>;
  using SA = Simd<acc_t<W>>;
  using V = typename S::V;
  Tile<V, R * kVectors> sums;
  for (index_t r = 0; r < rows; ++r, a += a_stride, b += b_stride)
    sums.each([&](index_t q, V& sum) {
      sum += a[q / kVectors] * SA::load_some(b + q % kVectors * S::kLanes, count);
    });
  sums.each([&](index_t q, V& sum) {
    S::store_some(out + q / kVectors * out_stride + q % kVectors * S::kLanes, sum, count);
  });
}

// Rows [i0, i1) of the output, down its columns.
template <class W>
CHATTN_INLINE void outer_rows(const acc_t<W>* a, const acc_t<W>* b, W* out, index_t rows,
                              index_t i_count, index_t i0, index_t i1, index_t k) {
  using A = acc_t<W>;
  using SA = Simd<A>;
  constexpr index_t kL = SA::kLanes, kRows = 32;
  typename SA::V packed[kRows * 2];
  for (index_t j = 0; j < k; j += 2 * kL) {
    const bool whole = j + 2 * kL <= k;
    const A* columns = b + j;
    index_t stride = k;
    if (whole && rows <= kRows) {
      for (index_t r = 0; r < rows; ++r)
        for (index_t v = 0; v < 2; ++v) packed[2 * r + v] = SA::load(b + r * k + j + v * kL);
      columns = reinterpret_cast<const A*>(packed);
      stride = 2 * kL;
    }
    for_tiles<4>(i0, i1, [&](index_t i, auto tile) {
      W* o = out + i * k + j;
      if (whole) {
        outer_tile<W, tile(), 2>(a + i, i_count, columns, stride, rows, o, k, kL);
        return;
      }
      for (index_t v = 0; j + v < k; v += kL)
        outer_tile<W, tile(), 1>(a + i, i_count, columns + v, stride, rows, o + v, k, k - j - v);
    });
  }
}

template <class W>
void matrix_outer(const acc_t<W>* a, const acc_t<W>* b, W* out, W* bias, index_t rows,
                  index_t i_count, index_t i0, index_t i1, index_t k) {
  using A = acc_t<W>;
  using SA = Simd<A>;
  constexpr index_t kL = SA::kLanes;
  if (bias) {
    for (index_t i = i0; i < i1; ++i) {
      A total = 0;
      for (index_t r = 0; r < rows; ++r) total += a[r * i_count + i];
      bias[i] = from_acc<W>(total);
    }
  }
  if (!out) return;
  if (rows <= 2) {  // rows of the output from end to end
    for (index_t i = i0; i < i1; ++i)
      for_vectors<kL>(k, [&](index_t j, index_t count) {
        typename SA::V sum{};
        for (index_t r = 0; r < rows; ++r)
          sum += a[r * i_count + i] * SA::load_some(b + r * k + j, count);
        Simd<W>::store_some(out + i * k + j, sum, count);
      });
    return;
  }
  for (index_t at_once = rows_at_once<W>(k); i0 < i1; i0 += at_once)
    outer_rows<W>(a, b, out, rows, i_count, i0, i1 - i0 < at_once ? i1 : i0 + at_once, k);
}

}  // namespace chattn::CHATTN_ISA
