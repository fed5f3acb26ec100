// The gates' matrix products: out(m, j) = sum_k rows(m, k) * columns(j, k), for (N, C)-sized
// operands.
//
// They are small: what they cost are waits for memory, one after another, and instructions that
// nothing overlaps (docs/gpu-model.md). So a product has many blocks with little work each, a block
// asks for all it reads before it uses any of it, and sums that blocks share end in one of two
// ways: inside a cluster each block adds up a slice of the outputs from the others' shared memory;
// where there are no clusters the parts go through global memory, and the last block done adds them
// up. Both add the same parts in the same order.
//
// The operands and what becomes of the results are objects:
//   Rows     has(m)               whether row m exists; otherwise its elements are 0
//            parts()              how many numbers add up to an element
//            part<V>(m, k, q)     V of them, from k on
//            given<V>(m, k)       what finish needs besides, asked for at the same time
//            finish<V>(m, k, sum, given, store)   the elements; writes them down for others if told
//   Columns  kAlongK              whether k is the contiguous dimension of the stored matrix
//            Type, wide()         of its elements; whether they are accumulators instead
//            words                whether 16 bytes of it that start at a multiple of 16 are aligned
//            has(j), at(j, k)     an element
//            word<W>(j, k)        16 bytes of elements of type W
//   Out      given(i, j), put(i, j, v, given)   for output j; i is its place in (samples x outputs)
#pragma once
#include "engine/cuda/arrival.cuh"
#include "engine/cuda/fast_div.h"
#include "engine/cuda/plan.h"
#include "engine/cuda/product_columns.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Powers of two are given by their logarithms: nothing is divided.
struct ProductShape {
  int n = 0, k = 0, r = 0;  // samples, summands, outputs
  int split_shift = 0;      // splits of k: blocks that share a tile of outputs
  int row_shift = 0;        // words of a row that a block stages at once
  FastDiv by_output_tiles;

  CHATTN_DEVICE int splits() const { return 1 << split_shift; }
  CHATTN_DEVICE int k_begin(int split) const {
    const int units = (k - 1) / kProductUnit + 1;
    return min(k, static_cast<int>(index_t{units} * split >> split_shift) * kProductUnit);
  }
};

// TM: samples of a tile. V: elements of a row per access: 16 bytes, or 1.
template <class A, int TM, int V>
struct Product : ProductColumns<A, V, TM * product_stride(sizeof(A))> {
  using Staged = ProductColumns<A, V, TM * product_stride(sizeof(A))>;
  using Staged::kColumnWords, Staged::kDepth, Staged::kN, Staged::kStride;
  using typename Staged::Word;
  static constexpr int kGroups = 4;  // groups of threads share a tile's sum
  static constexpr int kRowsAt = 0, kPartsAt = (TM + kN) * kStride;
  static constexpr int kMicroM = TM / 4, kMicroN = 4;
  static constexpr int kRowWords = TM * kDepth / V / kThreads;
  static constexpr int kOutputs = TM * kN / kThreads;  // of a tile, per thread
  static constexpr int kTileAt = kGroups * TM * kN;  // the tile's sums, behind those of the groups
  // Accumulators of shared memory: operands, and parts of rows that several threads add up.
  static constexpr int kShared = kPartsAt + kThreads * V;
  static_assert(kTileAt + TM * kN <= kShared && kRowWords >= 1 && kOutputs >= 1);
  static_assert((TM == 8 || TM == 16) && kGroups * 16 * 4 == kThreads);

  // ---- rows: a thread's words of the tile, or its share of the parts of one word
  template <class Rows>
  struct RowWords {
    Vec<A, V> sum[kRowWords];
    typename Rows::template Given<V> given[kRowWords];
  };

  struct RowPlace {
    int m, k;
    bool valid;
  };

  // Word w of the rows from k0 on.
  template <class Rows>
  CHATTN_DEVICE static RowPlace row_place(const Rows& rows, int shift, int w, int k0, int k_end) {
    RowPlace p;
    p.m = w >> shift;
    p.k = k0 + (w & ((1 << shift) - 1)) * V;
    p.valid = p.m < TM && p.k < k_end && rows.has(p.m);
    return p;
  }

  template <class Rows>
  CHATTN_DEVICE static void fetch_rows(const Rows& rows, int shift, int k0, int k_end,
                                       RowWords<Rows>& next) {
    const int tid = static_cast<int>(threadIdx.x), parts = rows.parts();
    const int words = TM << shift, full = shift + (TM == 8 ? 3 : 4);
    const int groups = words < kThreads ? kThreads >> full : 1;
    const int group = groups > 1 ? tid >> full : 0;
    RowPlace at[kRowWords];
    CHATTN_UNROLL
    for (int i = 0; i < kRowWords; ++i) {
      const int w = (groups > 1 ? tid & (words - 1) : tid) + i * kThreads;
      at[i] = row_place(rows, shift, w, k0, k_end);
      next.sum[i] = Vec<A, V>{};
      if (at[i].valid && group < parts)
        next.sum[i] = rows.template part<V>(at[i].m, at[i].k, group);
      if (at[i].valid && group == 0) next.given[i] = rows.template given<V>(at[i].m, at[i].k);
    }
    // The first part is in flight; here all of a batch are, before any is added.
    constexpr int kBatch = kRowWords < 8 ? 8 / kRowWords : 1;
    CHATTN_UNROLL_BY(1)
    for (int first = group + groups; first < parts; first += kBatch * groups) {
      Vec<A, V> more[kBatch][kRowWords];
      CHATTN_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        CHATTN_UNROLL
        for (int i = 0; i < kRowWords; ++i) {
          more[b][i] = Vec<A, V>{};
          if (at[i].valid && first + b * groups < parts)
            more[b][i] = rows.template part<V>(at[i].m, at[i].k, first + b * groups);
        }
      }
      CHATTN_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        CHATTN_UNROLL
        for (int i = 0; i < kRowWords; ++i) {
          CHATTN_UNROLL
          for (int e = 0; e < V; ++e) next.sum[i][e] += more[b][i][e];
        }
      }
    }
  }

  // Into shared memory. A barrier is due behind it.
  template <class Rows>
  CHATTN_DEVICE static void commit_rows(const Shared<A>& s, const Rows& rows, int shift, int k0,
                                        int k_end, const RowWords<Rows>& next, bool store) {
    const int tid = static_cast<int>(threadIdx.x), words = TM << shift;
    Vec<A, V> sum = next.sum[0];
    if (words < kThreads) {  // parts of word 0, of several threads
      s.template stv<V>(kPartsAt + tid * V, sum);
      __syncthreads();
      CHATTN_UNROLL_BY(1)
      for (int w = tid + words; w < kThreads; w += words) {
        const Vec<A, V> more = s.template ldv<V>(kPartsAt + w * V);
        CHATTN_UNROLL
        for (int e = 0; e < V; ++e) sum[e] += more[e];
      }
    }
    CHATTN_UNROLL
    for (int i = 0; i < kRowWords; ++i) {
      const int w = tid + i * kThreads;
      if (w >= words) continue;
      const RowPlace at = row_place(rows, shift, w, k0, k_end);
      Vec<A, V> v = {};
      if (at.valid)
        v = rows.template finish<V>(at.m, at.k, i == 0 ? sum : next.sum[i], next.given[i], store);
      s.template stv<V>(kRowsAt + at.m * kStride + at.k - k0, v);
    }
  }

  // ---- products
  CHATTN_DEVICE static void load4(const Shared<A>& s, int i, A (&v)[4]) {
    constexpr int kWord = 16 / static_cast<int>(sizeof(A));
    CHATTN_UNROLL
    for (int e = 0; e < 4; e += kWord) {
      const Vec<A, kWord> word = s.template ldv<kWord>(i + e);
      CHATTN_UNROLL
      for (int q = 0; q < kWord; ++q) v[e + q] = word[q];
    }
  }

  // Where a thread's outputs lie in the tile.
  CHATTN_DEVICE static int output_m(int place, int i) { return place / 16 + 4 * i; }
  template <bool kAlongK>
  CHATTN_DEVICE static int output_j(int place, int j) {
    return kAlongK ? place % 16 + 16 * j : place % 16 * 4 + j;
  }

  template <bool kAlongK>
  CHATTN_DEVICE static void multiply(const Shared<A>& s, int depth, A (&sum)[kMicroM][kMicroN]) {
    const int group = static_cast<int>(threadIdx.x) / 64, at = static_cast<int>(threadIdx.x) % 64;
    CHATTN_UNROLL_BY(2)
    for (int k = group * 4; k < depth; k += kGroups * 4) {
      A u[kMicroM][4], w[4][4];
      CHATTN_UNROLL
      for (int i = 0; i < kMicroM; ++i) load4(s, kRowsAt + output_m(at, i) * kStride + k, u[i]);
      CHATTN_UNROLL
      for (int e = 0; e < 4; ++e)
        load4(s,
              kAlongK ? Staged::template place<true>(output_j<true>(at, e), k)
                      : Staged::template place<false>(output_j<false>(at, 0), k + e),
              w[e]);
      CHATTN_UNROLL
      for (int i = 0; i < kMicroM; ++i) {
        CHATTN_UNROLL
        for (int e = 0; e < 4; ++e) {
          CHATTN_UNROLL
          for (int j = 0; j < kMicroN; ++j) sum[i][j] += u[i][e] * (kAlongK ? w[j][e] : w[e][j]);
        }
      }
    }
  }

  // This block's share of the tile's sums: value r is element tid + r * kThreads.
  template <class Rows, class Columns>
  CHATTN_DEVICE static void run(const Shared<A>& s, int shift, int k_begin, int k_end,
                                const Rows& rows, const Columns& columns, bool store,
                                A (&value)[kOutputs]) {
    const int tid = static_cast<int>(threadIdx.x);
    A sum[kMicroM][kMicroN] = {};
    RowWords<Rows> row;
    Word column[kColumnWords];
    // Each turn asks for what the next one multiplies.
    CHATTN_UNROLL_BY(1)
    for (int k0 = k_begin - kDepth; k0 < k_end; k0 += kDepth) {
      const bool first = k0 < k_begin;
      if (!first) {
        Staged::commit_columns(s, columns, k0, k_end, column);
        commit_rows(s, rows, shift, k0, k_end, row, store);
      }
      __syncthreads();
      if (k0 + kDepth < k_end) {
        Staged::fetch_columns(columns, k0 + kDepth, k_end, column);
        fetch_rows(rows, shift, k0 + kDepth, k_end, row);
      }
      if (!first) multiply<Columns::kAlongK>(s, min(kDepth, k_end - k0), sum);
      __syncthreads();
    }
    const int group = tid / 64, at = tid % 64;
    CHATTN_UNROLL
    for (int i = 0; i < kMicroM; ++i) {
      CHATTN_UNROLL
      for (int j = 0; j < kMicroN; ++j)
        s.st((group * TM + output_m(at, i)) * kN + output_j<Columns::kAlongK>(at, j), sum[i][j]);
    }
    __syncthreads();
    CHATTN_UNROLL
    for (int r = 0; r < kOutputs; ++r) {
      const int e = tid + r * kThreads;
      value[r] = s.ld(e);
      CHATTN_UNROLL
      for (int g = 1; g < kGroups; ++g) value[r] += s.ld(g * TM * kN + e);
    }
  }
};

// Grid: tiles of (samples x outputs), of each the splits of k; with clusters a tile is one.
// Shared: the product's, and 4 bytes.
template <class A, int TM, int V, class Rows, class Columns, class Out>
CHATTN_KERNEL(kThreads, 1)
product(ProductShape shape, Rows rows, Columns columns, Out out, A* parts, Arrivals arrivals) {
  using P = Product<A, TM, V>;
  const int tid = static_cast<int>(threadIdx.x);
  const int split = static_cast<int>(blockIdx.x) & (shape.splits() - 1);
  const int tile = static_cast<int>(blockIdx.x) >> shape.split_shift;
  const int row = shape.by_output_tiles.quotient(tile);
  const int n0 = row * TM;
  const int j0 = (tile - row * static_cast<int>(shape.by_output_tiles.divisor)) * P::kN;
  const bool clustered = cluster_size() > 1;
  const Shared<A> s = shared<A>(0, P::kShared);
  rows.first = n0;
  columns.first = j0;
  A value[P::kOutputs];
  P::run(s, shape.row_shift, shape.k_begin(split), shape.k_begin(split + 1), rows, columns, j0 == 0,
         value);

  const auto exists = [&](int e) { return n0 + e / P::kN < shape.n && j0 + e % P::kN < shape.r; };
  const auto at = [&](int e) { return (n0 + e / P::kN) * shape.r + j0 + e % P::kN; };
  if (clustered) {
    CHATTN_UNROLL
    for (int r = 0; r < P::kOutputs; ++r) s.st(P::kTileAt + tid + r * kThreads, value[r]);
    cluster_sync();
    const int slice = TM * P::kN >> shape.split_shift;
    CHATTN_UNROLL_BY(1)
    for (int e = split * slice + tid; e < (split + 1) * slice; e += kThreads) {
      if (!exists(e)) continue;
      const auto given = out.given(at(e), j0 + e % P::kN);
      A part[kProductSplits];
      CHATTN_UNROLL
      for (int q = 0; q < kProductSplits; ++q)
        part[q] =
            q < shape.splits() ? s.at_rank(static_cast<unsigned>(q)).ld(P::kTileAt + e) : A(0);
      CHATTN_UNROLL
      for (int q = 1; q < kProductSplits; ++q) part[0] += part[q];
      out.put(at(e), j0 + e % P::kN, part[0], given);
    }
    cluster_sync_relaxed();  // nobody leaves while others read its shared memory
    return;
  }

  if (shape.splits() > 1) {
    const index_t stride = static_cast<index_t>(shape.n) * shape.r;
    CHATTN_UNROLL
    for (int r = 0; r < P::kOutputs; ++r) {
      const int e = tid + r * kThreads;
      if (exists(e)) st(parts + split * stride + at(e), value[r]);
    }
    if (!arrivals.last(tile, shape.splits(), shared<int>(sizeof(A) * P::kShared, 1))) return;
    A part[kProductSplits][P::kOutputs];
    CHATTN_UNROLL
    for (int q = 0; q < kProductSplits; ++q) {  // all in flight together
      CHATTN_UNROLL
      for (int r = 0; r < P::kOutputs; ++r) {
        const int e = tid + r * kThreads;
        part[q][r] = q < shape.splits() && exists(e) ? ld(parts + q * stride + at(e)) : A(0);
      }
    }
    CHATTN_UNROLL
    for (int r = 0; r < P::kOutputs; ++r) {
      value[r] = part[0][r];
      CHATTN_UNROLL
      for (int q = 1; q < kProductSplits; ++q) value[r] += part[q][r];
    }
  }
  typename Out::Given given[P::kOutputs];
  CHATTN_UNROLL
  for (int r = 0; r < P::kOutputs; ++r) {
    const int e = tid + r * kThreads;
    if (exists(e)) given[r] = out.given(at(e), j0 + e % P::kN);
  }
  CHATTN_UNROLL
  for (int r = 0; r < P::kOutputs; ++r) {
    const int e = tid + r * kThreads;
    if (exists(e)) out.put(at(e), j0 + e % P::kN, value[r], given[r]);
  }
}

}  // namespace chattn::cuda
