// How a block of a product (product.cuh) brings the columns of its tile into shared memory: words
// of 16 bytes, kept as they were loaded until the tile before is done with.
#pragma once
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// V: elements of a row per access: 16 bytes, or 1. kColumnsAt: where the columns begin.
template <class A, int V, int kColumnsAt>
struct ProductColumns {
  static constexpr int kN = kProductOutputs;
  static constexpr int kDepth = product_depth(sizeof(A));  // summands staged at once
  static constexpr int kStride = product_stride(sizeof(A));
  static constexpr int kColumnWords = kN * kDepth * static_cast<int>(sizeof(A)) / 16 / kThreads;
  struct alignas(16) Word {
    unsigned v[4];
  };

  // Element e of the tile, as the stored matrix runs: (j, k - k0).
  template <bool kAlongK>
  CHATTN_DEVICE static void locate(int e, int& j, int& k) {
    j = kAlongK ? e / kDepth : e % kN;
    k = kAlongK ? e % kDepth : e / kN;
  }
  template <bool kAlongK>
  CHATTN_DEVICE static int place(int j, int k) {
    return kColumnsAt + (kAlongK ? j * kStride + k : k * kN + j);
  }

  template <class W, class Columns>
  CHATTN_DEVICE static void fetch_words(const Columns& columns, int k0, int k_end,
                                        Word (&next)[kColumnWords]) {
    constexpr int kWord = 16 / static_cast<int>(sizeof(W));
    constexpr int kWords = kN * kDepth / kWord / kThreads;
    CHATTN_UNROLL
    for (int i = 0; i < kWords; ++i) {
      int j, k;
      locate<Columns::kAlongK>((static_cast<int>(threadIdx.x) + i * kThreads) * kWord, j, k);
      Vec<W, kWord> v = {};
      if (k0 + k < k_end && columns.has(j)) v = columns.template word<W>(j, k0 + k);
      memcpy(&next[i], &v, sizeof v);
    }
  }

  template <class W, class Columns>
  CHATTN_DEVICE static void commit_words(const Shared<A>& s, int depth,
                                         const Word (&next)[kColumnWords]) {
    constexpr int kWord = 16 / static_cast<int>(sizeof(W)),
                  kPiece = 16 / static_cast<int>(sizeof(A));
    constexpr int kWords = kN * kDepth / kWord / kThreads;
    CHATTN_UNROLL
    for (int i = 0; i < kWords; ++i) {
      int j, k;
      locate<Columns::kAlongK>((static_cast<int>(threadIdx.x) + i * kThreads) * kWord, j, k);
      if (k >= depth) continue;
      Vec<W, kWord> v;
      memcpy(&v, &next[i], sizeof v);
      CHATTN_UNROLL
      for (int p = 0; p < kWord; p += kPiece) {
        Vec<A, kPiece> piece;
        CHATTN_UNROLL
        for (int e = 0; e < kPiece; ++e) piece[e] = to_acc(v[p + e]);
        s.template stv<kPiece>(place<Columns::kAlongK>(j, k) + p, piece);
      }
    }
  }

  // Rows that are no multiple of 16 bytes: element by element, a batch in flight.
  template <class Columns>
  CHATTN_DEVICE static void commit_elements(const Shared<A>& s, const Columns& columns, int k0,
                                            int k_end, int depth) {
    constexpr int kBatch = 8;
    const int count = kN * (Columns::kAlongK ? kDepth : depth);
    CHATTN_UNROLL_BY(1)
    for (int e0 = static_cast<int>(threadIdx.x); e0 < count; e0 += kBatch * kThreads) {
      A v[kBatch];
      CHATTN_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        int j, k;
        locate<Columns::kAlongK>(e0 + b * kThreads, j, k);
        v[b] = A(0);
        if (e0 + b * kThreads < count && k0 + k < k_end && columns.has(j))
          v[b] = columns.at(j, k0 + k);
      }
      CHATTN_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        int j, k;
        locate<Columns::kAlongK>(e0 + b * kThreads, j, k);
        if (e0 + b * kThreads < count && k < depth) s.st(place<Columns::kAlongK>(j, k), v[b]);
      }
    }
  }

  template <class Columns>
  CHATTN_DEVICE static void fetch_columns(const Columns& columns, int k0, int k_end,
                                          Word (&next)[kColumnWords]) {
    if (V == 1 || !columns.words) return;
    if (columns.wide()) {
      fetch_words<A>(columns, k0, k_end, next);
    } else {
      fetch_words<typename Columns::Type>(columns, k0, k_end, next);
    }
  }

  template <class Columns>
  CHATTN_DEVICE static void commit_columns(const Shared<A>& s, const Columns& columns, int k0,
                                           int k_end, const Word (&next)[kColumnWords]) {
    const int depth = (min(kDepth, k_end - k0) + 3) / 4 * 4;
    if (V == 1 || !columns.words) {
      commit_elements(s, columns, k0, k_end, depth);
    } else if (columns.wide()) {
      commit_words<A, Columns>(s, depth, next);
    } else {
      commit_words<typename Columns::Type, Columns>(s, depth, next);
    }
  }
};

}  // namespace chattn::cuda
