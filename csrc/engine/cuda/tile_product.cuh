// A block's tile of a small matrix product, for the gates: out(m, n) = sum_k a(m, k) * b(n, k).
//
// Operands are matrices, after what is to be done to their elements:
//   kAlongK              whether k is the contiguous dimension
//   p, width             where the matrix begins, on a 16-byte boundary; elements of a stored row
//   rows, first          rows (i) of the tile that exist; the tile's first element
//   with_type(body)      body(S()), S the type of the stored elements
//   finish(v)            what is done to an array of them
//
// Loads are written apart from what uses them: of a sum over k that is one chunk long, everything
// is in flight together, and a longer one waits for its first chunk only, as the next is on its way
// while one is multiplied. (A conversion of each loaded number would leave two loads in flight.)
//
// Order of the sum: kGroups interleaved chains over k; the chains in order.
#pragma once
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

#if !defined(__CUDACC__)
// That a chunk is loaded before it is stored is known from k0 in another turn of the loop.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace chattn::cuda {

// A thread's elements of an operand's tile of Extent rows by Chunk values of k: words of 16 bytes,
// or one by one where stored rows do not start on 16-byte boundaries.
template <class Operand, class A, int Extent, int Chunk>
struct OperandTile {
  static constexpr bool kAlongK = Operand::kAlongK;
  static constexpr int kEach = Extent * Chunk / kThreads, kStride = Extent + 4;
  using Raw = std::conditional_t<sizeof(A) == 8, std::uint64_t, std::uint32_t>;
  static constexpr int kRaws = 16 / static_cast<int>(sizeof(Raw));
  Raw raw[kEach];  // as they were loaded

  struct Place {
    int i, k;
  };
  // One by one: a thread's elements lie kStep apart along one dimension. Along k, lanes take 8
  // neighbours of 4 rows: whole sectors, and no bank of shared memory twice.
  static constexpr unsigned kLanesK = 8, kRowsK = kWarp / kLanesK;
  static constexpr unsigned kWarpsK = kAlongK ? Chunk / kLanesK : 1;
  static constexpr int kStep = kAlongK ? kThreads / Chunk : kThreads / Extent;
  static_assert(kEach * kThreads == Extent * Chunk);
  static_assert(!kAlongK || kWarps % kWarpsK == 0, "a thread keeps its k");
  static_assert(kAlongK || kThreads % Extent == 0, "a thread keeps its row");
  CHATTN_DEVICE static Place place(unsigned tid) {
    const unsigned warp = tid / kWarp, lane = tid % kWarp;
    if (!kAlongK) return {static_cast<int>(tid % Extent), static_cast<int>(tid / Extent)};
    return {static_cast<int>(warp / kWarpsK * kRowsK + lane / kLanesK),
            static_cast<int>(warp % kWarpsK * kLanesK + lane % kLanesK)};
  }
  CHATTN_DEVICE static int at(Place p, int q) {
    return (p.k + (kAlongK ? 0 : q * kStep)) * kStride + p.i + (kAlongK ? q * kStep : 0);
  }

  // In words: along k, lanes take 2 neighbours of 16 rows, for the sake of sectors and banks.
  template <class S>
  static constexpr int kWord = 16 / static_cast<int>(sizeof(S));
  template <class S>
  static constexpr int kWords = kEach % kWord<S> == 0 ? kEach / kWord<S> : 0;
  template <class S>
  CHATTN_DEVICE static Place word_place(unsigned tid, int w) {
    if constexpr (kAlongK) {
      constexpr unsigned kPairs = Chunk / kWord<S> / 2;
      static_assert(kPairs * 2 * kWord<S> == Chunk && Extent % 16 == 0);
      const unsigned group = tid / kWarp + w * kWarps, lane = tid % kWarp;
      return {static_cast<int>(group / kPairs * 16 + lane / 2),
              static_cast<int>((group % kPairs * 2 + lane % 2) * kWord<S>)};
    } else {
      const unsigned e = (tid + w * kThreads) * kWord<S>;
      return {static_cast<int>(e % Extent), static_cast<int>(e / Extent)};
    }
  }
  // body(S(), whether it is words)
  template <class Body>
  CHATTN_DEVICE static void with_access(const Operand& operand, Body&& body) {
    operand.with_type([&](auto type) {
      using S = decltype(type);
      if constexpr (kWords<S> > 0) {
        if (operand.width * sizeof(S) % 16 == 0) return body(type, std::true_type{});
      }
      body(type, std::false_type{});
    });
  }

  // Places are computed for every chunk again: kept, for every way to load, they take registers.
  CHATTN_DEVICE void load(const Operand& operand, int k0, int k_end) {
    const unsigned tid = opaque(threadIdx.x);
    with_access(operand, [&](auto type, auto words) {
      using S = decltype(type);
      const S* const p = static_cast<const S*>(operand.p);
      const auto index = [&](Place at) {
        return operand.first +
               (kAlongK ? at.i * operand.width + k0 + at.k : (k0 + at.k) * operand.width + at.i);
      };
      if constexpr (decltype(words)::value) {
        CHATTN_UNROLL
        for (int w = 0; w < kWords<S>; ++w) {
          const Place at = word_place<S>(tid, w);
          Vec<Raw, kRaws> v = {};
          if (k0 + at.k < k_end && at.i < operand.rows)
            v = load_vec<kRaws>(reinterpret_cast<const Raw*>(p + index(at)));
          CHATTN_UNROLL
          for (int e = 0; e < kRaws; ++e) raw[w * kRaws + e] = v[e];
        }
      } else {
        // All but the first element's place depends on the chunk, so that the compiler does not
        // keep an address and a condition for each of them.
        const Place first = place(tid);
        const int left_i = operand.rows - first.i, left_k = k_end - k0 - first.k;
        const int left = kAlongK ? (left_k > 0 ? left_i : 0) : (left_i > 0 ? left_k : 0);
        CHATTN_UNROLL
        for (int q = 0; q < kEach; ++q) {
          raw[q] = 0;
          if (q * kStep < left) raw[q] = raw_of(ld(p + (index(first) + q * kStep * operand.width)));
        }
      }
    });
  }

  CHATTN_DEVICE void store(const Operand& operand, const Shared<A>& s, int offset) const {
    const unsigned tid = opaque(threadIdx.x);
    A v[kEach];
    with_access(operand, [&](auto type, auto words) {
      using S = decltype(type);
      CHATTN_UNROLL
      for (int q = 0; q < kEach; ++q) {
        if constexpr (decltype(words)::value) {
          constexpr int kIn = kWord<S> / kRaws;  // elements in a raw number
          using Elements = Vec<S, kIn>;
          v[q] = to_acc(bit_cast<Elements>(raw[q / kIn])[q % kIn]);
        } else {
          v[q] = to_acc(element_of<S>(raw[q]));
        }
      }
    });
    operand.finish(v);
    with_access(operand, [&](auto type, auto words) {
      using S = decltype(type);
      constexpr int kPiece =
          decltype(words)::value && !kAlongK ? 16 / static_cast<int>(sizeof(A)) : 1;
      CHATTN_UNROLL
      for (int q = 0; q < kEach; q += kPiece) {
        Vec<A, kPiece> piece;
        CHATTN_UNROLL
        for (int e = 0; e < kPiece; ++e) piece[e] = v[q + e];
        int to = at(place(tid), q);
        if constexpr (decltype(words)::value) {
          const Place p = word_place<S>(tid, q / kWord<S>);
          const int e = q % kWord<S>;
          to = (p.k + (kAlongK ? e : 0)) * kStride + p.i + (kAlongK ? 0 : e);
        }
        s.template stv<kPiece>(offset + to, piece);
      }
    });
  }

 private:
  template <class S>
  CHATTN_DEVICE static Raw raw_of(S v) {
    if constexpr (sizeof(S) == sizeof(Raw)) {
      return bit_cast<Raw>(v);
    } else {
      return v.bits;
    }
  }
  template <class S>
  CHATTN_DEVICE static S element_of(Raw v) {
    if constexpr (sizeof(S) == sizeof(Raw)) {
      return bit_cast<S>(v);
    } else {
      return S{static_cast<std::uint16_t>(v)};
    }
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
  // memory, a's element (m, k) at k*kStrideM + m; with 0, what it does while the first is on its
  // way.
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
      const int count = k0 < 0 ? 0 : min(Chunk, k_end - k0);
      if (m0 < a.rows) {
        CHATTN_UNROLL_BY(kUnrolled)
        for (int k = group(); k < count; k += kGroups) {
          A u[kMicro], v[kPanels][kMicro];
          load4(s, k * kStrideM + m0, u);
          CHATTN_UNROLL
          for (int p = 0; p < kPanels; ++p) load4(s, offset + k * kStrideN + p * kPanel + n0, v[p]);
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
      if (count > 0) __syncthreads();
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
        for (int j = 0; j < kMicro; ++j) body(row() + i, p * kPanel + column() + j, sum[p][i][j]);
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

#if !defined(__CUDACC__)
#pragma GCC diagnostic pop
#endif
