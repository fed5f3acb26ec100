// A block's tile of a small matrix product, for the gates: out(m, n) = sum_k a(m, k) * b(n, k).
//
// Operands are objects, because they are rarely plain matrices (sums of partial results,
// activations on the fly):
//   kAlongK           whether k is the contiguous dimension
//   has(i)            whether row i exists; otherwise its elements are 0
//   parts()           how many numbers add up to an element
//   part(i, k, q)     one of them
//   finish(i, k, v)   the element, from their sum; asked once per block, so it may also write it
//   down
// Order of the sum: chunks of k; within a chunk, kGroups interleaved chains; the chains in order.
#pragma once
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Prefetch: load the next chunk while this one is multiplied (more registers; for long sums).
template <class A, int TM, int TN, int Chunk, bool Prefetch = true>
struct MatmulTile {
  static constexpr int kMicro = 4;  // a thread's outputs: 4 x 4
  static constexpr int kGroupThreads = (TM / kMicro) * (TN / kMicro);
  static constexpr int kGroups = kThreads / kGroupThreads;
  static constexpr int kStrideM = TM + 4, kStrideN = TN + 4;
  static constexpr int kOperands = Chunk * (kStrideM + kStrideN), kPartials = kGroups * TM * TN;
  // Accumulators of shared memory that run() needs.
  static constexpr int kShared = kOperands > kPartials ? kOperands : kPartials;
  static constexpr int kLoadsM = TM * Chunk / kThreads, kLoadsN = TN * Chunk / kThreads;
  static_assert(kGroupThreads * kGroups == kThreads && Chunk % kGroups == 0);
  static_assert(kLoadsM * kThreads == TM * Chunk && kLoadsN * kThreads == TN * Chunk);
  static_assert(kStrideM % 4 == 0 && kStrideN % 4 == 0, "rows start on 16-byte boundaries");

  // Element e of a tile -> (position along the tile, k); neighbours in memory go to neighbours.
  template <bool kAlongK, int Extent>
  CHATTN_DEVICE static void locate(int e, int& i, int& k) {
    i = kAlongK ? e / Chunk : e % Extent;
    k = kAlongK ? e % Chunk : e / Extent;
  }

  CHATTN_DEVICE static void load4(const Shared<A>& s, int i, A (&v)[kMicro]) {
    constexpr int kWord = 16 / static_cast<int>(sizeof(A));
    CHATTN_UNROLL
    for (int e = 0; e < kMicro; e += kWord) {
      const Vec<A, kWord> word = s.template ldv<kWord>(i + e);
      CHATTN_UNROLL
      for (int q = 0; q < kWord; ++q) v[e + q] = word[q];
    }
  }

  // This thread's elements of an operand's tile. All of one part are in flight together.
  template <int Extent, int kLoads, class Operand>
  CHATTN_DEVICE static void fetch_tile(const Operand& operand, int k0, int k_end,
                                       A (&next)[kLoads]) {
    const int tid = static_cast<int>(threadIdx.x), parts = operand.parts();
    CHATTN_UNROLL
    for (int q = 0; q < kLoads; ++q) next[q] = A(0);
    CHATTN_UNROLL_BY(1)
    for (int part = 0; part < parts; ++part) {
      CHATTN_UNROLL
      for (int q = 0; q < kLoads; ++q) {
        int i, k;
        locate<Operand::kAlongK, Extent>(tid + q * kThreads, i, k);
        if (k0 + k < k_end && operand.has(i)) next[q] += operand.part(i, k0 + k, part);
      }
    }
    CHATTN_UNROLL
    for (int q = 0; q < kLoads; ++q) {
      int i, k;
      locate<Operand::kAlongK, Extent>(tid + q * kThreads, i, k);
      if (k0 + k < k_end && operand.has(i)) next[q] = operand.finish(i, k0 + k, next[q]);
    }
  }

  // emit(m, n, value) takes the results; row_sum(m, value) takes sum_k a(m, k) if kRowSum.
  template <bool kRowSum = false, class LoadA, class LoadB, class Emit, class RowSum>
  CHATTN_DEVICE static void run(const Shared<A>& s, int k_begin, int k_end, const LoadA& a,
                                const LoadB& b, const Emit& emit, const RowSum& row_sum) {
    const int tid = static_cast<int>(threadIdx.x);
    const int group = tid / kGroupThreads, place = tid % kGroupThreads;
    const int m0 = place / (TN / kMicro) * kMicro, n0 = place % (TN / kMicro) * kMicro;
    const int offset_n = Chunk * kStrideM;
    A sum[kMicro][kMicro] = {}, next_a[kLoadsM], next_b[kLoadsN], total = A(0);

    const auto fetch = [&](int k0) {
      fetch_tile<TM, kLoadsM>(a, k0, k_end, next_a);
      fetch_tile<TN, kLoadsN>(b, k0, k_end, next_b);
    };

    if (Prefetch) fetch(k_begin);
    for (int k0 = k_begin; k0 < k_end; k0 += Chunk) {
      if (!Prefetch) fetch(k0);
      CHATTN_UNROLL
      for (int q = 0; q < kLoadsM; ++q) {
        int m, k;
        locate<LoadA::kAlongK, TM>(tid + q * kThreads, m, k);
        s.st(k * kStrideM + m, next_a[q]);
      }
      CHATTN_UNROLL
      for (int q = 0; q < kLoadsN; ++q) {
        int n, k;
        locate<LoadB::kAlongK, TN>(tid + q * kThreads, n, k);
        s.st(offset_n + k * kStrideN + n, next_b[q]);
      }
      __syncthreads();
      if (Prefetch && k0 + Chunk < k_end) fetch(k0 + Chunk);
      CHATTN_UNROLL_BY(4)
      for (int k = group; k < Chunk; k += kGroups) {
        A u[kMicro], v[kMicro];
        load4(s, k * kStrideM + m0, u);
        load4(s, offset_n + k * kStrideN + n0, v);
        CHATTN_UNROLL
        for (int i = 0; i < kMicro; ++i) {
          CHATTN_UNROLL
          for (int j = 0; j < kMicro; ++j) sum[i][j] += u[i] * v[j];
        }
      }
      if (kRowSum && tid < TM) {
        for (int k = 0; k < Chunk; ++k) total += s.ld(k * kStrideM + tid);
      }
      __syncthreads();
    }

    if (kRowSum && tid < TM) row_sum(tid, total);
    CHATTN_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      CHATTN_UNROLL
      for (int j = 0; j < kMicro; ++j) s.st((group * TM + m0 + i) * TN + n0 + j, sum[i][j]);
    }
    __syncthreads();
    for (int e = tid; e < TM * TN; e += kThreads) {
      A value = s.ld(e);
      CHATTN_UNROLL
      for (int g = 1; g < kGroups; ++g) value += s.ld(g * TM * TN + e);
      emit(e / TN, e % TN, value);
    }
  }

  template <class LoadA, class LoadB, class Emit>
  CHATTN_DEVICE static void run(const Shared<A>& s, int k_begin, int k_end, const LoadA& a,
                                const LoadB& b, const Emit& emit) {
    run<false>(s, k_begin, k_end, a, b, emit, [](int, A) {});
  }
};

}  // namespace chattn::cuda
