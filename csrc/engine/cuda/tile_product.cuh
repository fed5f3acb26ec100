// A block's tile of a small matrix product, for the gates: out(m, n) = sum_k a(m, k) * b(n, k).
//
// Operands are matrices, after what is to be done to their elements:
//   kAlongK              whether k is the contiguous dimension
//   width, rows, first   elements of a stored row; rows (i) of the tile that exist; the tile's first
//                        element
//   Raw                  an element as it is loaded
//   with_loads(body)     body(load), load(index) -> Raw: what their type is, is asked once
//   finish(raw, v)       the elements of an array of them
//
// Loads are written apart from what uses them: of a sum over k that is one chunk long, everything
// is in flight together, and a longer one waits for its first chunk only, as the next is on its way
// while one is multiplied. (An addition to each loaded number would leave two loads in flight.)
//
// Order of the sum: kGroups interleaved chains over k; the chains in order.
#pragma once
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// A thread's elements of an operand's tile of Extent rows by Chunk values of k.
template <class Operand, class A, int Extent, int Chunk>
struct OperandTile {
  // Along k, lanes take 8 neighbours of 4 rows: whole sectors, and no bank of shared memory twice.
  static constexpr unsigned kLanesK = 8, kRowsK = kWarp / kLanesK, kWarpsK = Chunk / kLanesK;
  static constexpr int kEach = Extent * Chunk / kThreads, kStride = Extent + 4;
  static constexpr bool kAlongK = Operand::kAlongK;
  static constexpr int kStepI = kAlongK ? kThreads / Chunk : 0;
  static constexpr int kStepK = kAlongK ? 0 : kThreads / Extent;
  static_assert(kEach * kThreads == Extent * Chunk);
  static_assert(!kAlongK || kWarps % kWarpsK == 0, "a thread keeps its k");
  static_assert(kAlongK || kThreads % Extent == 0, "a thread keeps its row");
  typename Operand::Raw raw[kEach];

  // The first element's place.
  CHATTN_DEVICE static void place(int& i, int& k) {
    const unsigned tid = threadIdx.x, warp = tid / kWarp, lane = tid % kWarp;
    i = static_cast<int>(kAlongK ? warp / kWarpsK * kRowsK + lane / kLanesK : tid % Extent);
    k = static_cast<int>(kAlongK ? warp % kWarpsK * kLanesK + lane % kLanesK : tid / Extent);
  }

  // Everything but where the first element is depends on the chunk, so that the compiler does not
  // keep an address and a condition for each of them.
  CHATTN_DEVICE void load(const Operand& operand, int k0, int k_end) {
    int i, k;
    place(i, k);
    const int left_i = operand.rows - i, left_k = k_end - k0 - k;
    const int left = kAlongK ? (left_k > 0 ? left_i : 0) : (left_i > 0 ? left_k : 0);
    const int at = operand.first + (kAlongK ? i * operand.width + k0 + k
                                            : (k0 + k) * operand.width + i);
    const int step = (kStepI + kStepK) * operand.width;
    operand.with_loads([&](auto&& load) {
      CHATTN_UNROLL
      for (int q = 0; q < kEach; ++q) {
        raw[q] = {};
        if (q * (kStepI + kStepK) < left) raw[q] = load(at + q * step);
      }
    });
  }

  CHATTN_DEVICE void store(const Operand& operand, const Shared<A>& s, int offset) const {
    int i, k;
    place(i, k);
    A v[kEach];
    operand.finish(raw, v);
    CHATTN_UNROLL
    for (int q = 0; q < kEach; ++q) s.st(offset + (k + q * kStepK) * kStride + i + q * kStepI, v[q]);
  }
};

// A thread owns 4 rows, and 4 columns of every 64.
template <class A, int TM, int TN, int Chunk>
struct TileProduct {
  static constexpr int kMicro = 4, kLanes = 16, kPanel = kMicro * kLanes, kPanels = TN / kPanel;
  static constexpr int kPlaces = kLanes * TM / kMicro;  // threads with different outputs
  static constexpr int kGroups = kThreads / kPlaces;
  static constexpr int kStrideM = TM + 4, kStrideN = TN + 4;
  // Accumulators of shared memory, for the operands and then for the sums of the groups.
  static constexpr int kOperands = Chunk * (kStrideM + kStrideN), kSums = kGroups * TM * TN;
  static constexpr int kEach = TM * TN / kThreads;
  static constexpr int kUnrolled = kPanels == 1 ? 2 : 1;
  static_assert(kPanels * kPanel == TN && kPlaces * kGroups == kThreads && Chunk % kGroups == 0);
  static_assert(kStrideM % 4 == 0 && kStrideN % 4 == 0, "rows start on 16-byte boundaries");

  A sum[kPanels][kMicro][kMicro];

  // This thread's.
  CHATTN_DEVICE static int group() { return static_cast<int>(threadIdx.x / kPlaces); }
  CHATTN_DEVICE static int row() {
    return static_cast<int>(threadIdx.x % kPlaces / kLanes * kMicro);
  }
  CHATTN_DEVICE static int column() { return static_cast<int>(threadIdx.x % kLanes * kMicro); }

  CHATTN_DEVICE static void load4(const Shared<A>& s, int i, A (&v)[kMicro]) {
    constexpr int kWord = 16 / static_cast<int>(sizeof(A));
    CHATTN_UNROLL
    for (int e = 0; e < kMicro; e += kWord) {
      const Vec<A, kWord> word = s.template ldv<kWord>(i + e);
      CHATTN_UNROLL
      for (int q = 0; q < kWord; ++q) v[e + q] = word[q];
    }
  }
  CHATTN_DEVICE static void store4(const Shared<A>& s, int i, const A (&v)[kMicro]) {
    constexpr int kWord = 16 / static_cast<int>(sizeof(A));
    CHATTN_UNROLL
    for (int e = 0; e < kMicro; e += kWord) {
      Vec<A, kWord> word;
      CHATTN_UNROLL
      for (int q = 0; q < kWord; ++q) word[q] = v[e + q];
      s.template stv<kWord>(i + e, word);
    }
  }

  // Sums over k < k_end. also(count): what else a thread does with the chunk of so many k in shared
  // memory, a's element (m, k) at k*kStrideM + m.
  template <class OperandA, class OperandB, class Also>
  CHATTN_DEVICE void run(const Shared<A>& s, int k_end, const OperandA& a, const OperandB& b,
                         Also&& also) {
    OperandTile<OperandA, A, TM, Chunk> tile_a;
    OperandTile<OperandB, A, TN, Chunk> tile_b;
    const int offset = Chunk * kStrideM, m0 = row(), n0 = column();
    CHATTN_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      CHATTN_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        CHATTN_UNROLL
        for (int j = 0; j < kMicro; ++j) sum[p][i][j] = A(0);
      }
    }
    CHATTN_UNROLL_BY(1)
    for (int k0 = -Chunk; k0 < k_end; k0 += Chunk) {
      if (k0 + Chunk < k_end) {
        tile_a.load(a, k0 + Chunk, k_end);
        tile_b.load(b, k0 + Chunk, k_end);
      }
      if (k0 >= 0) {
        const int count = min(Chunk, k_end - k0);
        if (m0 < a.rows) {
          CHATTN_UNROLL_BY(kUnrolled)
          for (int k = group(); k < count; k += kGroups) {
            A u[kMicro], v[kPanels][kMicro];
            load4(s, k * kStrideM + m0, u);
            CHATTN_UNROLL
            for (int p = 0; p < kPanels; ++p)
              load4(s, offset + k * kStrideN + p * kPanel + n0, v[p]);
            CHATTN_UNROLL
            for (int p = 0; p < kPanels; ++p) {
              CHATTN_UNROLL
              for (int i = 0; i < kMicro; ++i) {
                CHATTN_UNROLL
                for (int j = 0; j < kMicro; ++j) sum[p][i][j] += u[i] * v[p][j];
              }
            }
          }
        }
        also(count);
        __syncthreads();
      }
      if (k0 + Chunk < k_end) {
        tile_a.store(a, s, 0);
        tile_b.store(b, s, offset);
        __syncthreads();
      }
    }
  }

  // body(m, n, sum) for this thread's sums: all there is to them where there is one group.
  template <class Body>
  CHATTN_DEVICE void each(Body&& body) const {
    CHATTN_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      CHATTN_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        CHATTN_UNROLL
        for (int j = 0; j < kMicro; ++j)
          body(row() + i, p * kPanel + column() + j, sum[p][i][j]);
      }
    }
  }

  // The sums of all groups: of element threadIdx.x + r*kThreads of the tile, in result[r].
  CHATTN_DEVICE void gather(const Shared<A>& s, int rows, A (&result)[kEach]) const {
    const int tid = static_cast<int>(threadIdx.x), m0 = row();
    if (m0 < rows) {
      CHATTN_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        CHATTN_UNROLL
        for (int i = 0; i < kMicro; ++i)
          store4(s, (group() * TM + m0 + i) * TN + p * kPanel + column(), sum[p][i]);
      }
    }
    __syncthreads();
    CHATTN_UNROLL
    for (int r = 0; r < kEach; ++r) {
      const int e = tid + r * kThreads;
      if (e >= rows * TN) continue;
      result[r] = s.ld(e);
      CHATTN_UNROLL
      for (int g = 1; g < kGroups; ++g) result[r] += s.ld(g * TM * TN + e);
    }
  }
};

}  // namespace chattn::cuda
