// Vectors of accumulators and their loads from every element type.
//
// Included only by sources that are compiled once per instruction set, with CHATTN_ISA naming the
// namespace. Everything here lives in that namespace: an inline function shared between instruction
// sets would let the linker keep the AVX-512 copy for a machine that has no AVX-512.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/types.h"
#include "engine/map.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define CHATTN_INLINE inline __attribute__((always_inline))
#define CHATTN_INLINE_LAMBDA __attribute__((always_inline))

namespace chattn::CHATTN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A, int kBytes = kVectorBytes>
struct vector_of {
  typedef A type __attribute__((vector_size(kBytes)));
};

// As many lanes as a vector of float.
typedef std::uint16_t U16 __attribute__((vector_size(kVectorBytes / 2)));
typedef std::uint32_t U32 __attribute__((vector_size(kVectorBytes)));

typedef std::uint64_t U64x2 __attribute__((vector_size(16)));

// The first `bytes` < 16 bytes of memory, zeros behind them; all in units of kUnit bytes. In pieces
// of powers of two, as what is left of a row or a plane is the same for all: every branch is
// foreseen.
template <int kUnit>
CHATTN_INLINE U64x2 load_bytes(const void* from, int bytes) {
  if constexpr (std::endian::native == std::endian::big) {
    U64x2 v{};
    memcpy(&v, from, static_cast<std::size_t>(bytes));
    return v;
  }
  const char* p = static_cast<const char*>(from);
  std::uint64_t first = 0, rest = 0;
  int shift = 0;
  if (bytes & 8) {
    memcpy(&first, p, 8);
    p += 8;
  }
  if (kUnit <= 4 && bytes & 4) {
    std::uint32_t piece;
    memcpy(&piece, p, 4);
    rest = piece;
    shift = 32;
    p += 4;
  }
  if (kUnit <= 2 && bytes & 2) {
    std::uint16_t piece;
    memcpy(&piece, p, 2);
    rest |= static_cast<std::uint64_t>(piece) << shift;
  }
  return bytes & 8 ? U64x2{first, rest} : U64x2{rest, 0};
}

template <int kUnit>
CHATTN_INLINE void store_bytes(void* to, U64x2 v, int bytes) {
  if constexpr (std::endian::native == std::endian::big) {
    memcpy(to, &v, static_cast<std::size_t>(bytes));
    return;
  }
  char* p = static_cast<char*>(to);
  std::uint64_t rest = v[0];
  if (bytes & 8) {
    memcpy(p, &rest, 8);
    rest = v[1];
    p += 8;
  }
  if (kUnit <= 4 && bytes & 4) {
    memcpy(p, &rest, 4);
    rest >>= 32;
    p += 4;
  }
  if (kUnit <= 2 && bytes & 2) memcpy(p, &rest, 2);
}

#if !defined(__AVX512F__) && !defined(__F16C__)
// Called: without an instruction for it these were half of the size of all kernels.
inline __attribute__((noinline)) vector_of<float>::type widen_halves(U16 bits) {
  vector_of<float>::type v{};
#pragma GCC unroll 4
  for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) v[i] = to_acc(half_t{bits[i]});
  return v;
}
inline __attribute__((noinline)) U16 narrow_to_halves(vector_of<float>::type v) {
  U16 bits{};
#pragma GCC unroll 4
  for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) bits[i] = from_acc<half_t>(v[i]).bits;
  return bits;
}
#endif

template <class T>
struct Simd {
  using A = acc_t<T>;
  using V = typename vector_of<A>::type;
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

  static CHATTN_INLINE V broadcast(A a) { return a - V{}; }

  // The maskz forms of the conversions: the plain ones read an undefined vector in GCC's headers.
  static CHATTN_INLINE V load(const T* p) {
    V v;
    if constexpr (sizeof(T) == sizeof(A)) {
      memcpy(&v, p, sizeof v);
    } else {
      U16 bits;
      memcpy(&bits, p, sizeof bits);
      v = widen(bits);
    }
    return v;
  }

  static CHATTN_INLINE V widen(U16 bits) {
    static_assert(sizeof(T) == 2);
    V v;
    if constexpr (std::is_same_v<T, bfloat16_t>) {
      // GCC 12 widens and narrows in halves where an instruction does it.
#if defined(__AVX512F__)
      const U32 wide = (U32)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)bits) << 16;
#elif defined(__AVX2__)
      const U32 wide = (U32)_mm256_cvtepu16_epi32((__m128i)bits) << 16;
#else
      const U32 wide = __builtin_convertvector(bits, U32) << 16;
#endif
      memcpy(&v, &wide, sizeof v);
    } else {
#if defined(__AVX512F__)
      v = (V)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
#elif defined(__F16C__)
      v = (V)_mm256_cvtph_ps((__m128i)bits);
#else
      v = widen_halves(bits);
#endif
    }
    return v;
  }

  // The 16-bit results of a vector, in element order.
  static CHATTN_INLINE U16 narrow(V v) {
    static_assert(sizeof(T) == 2);
    U16 bits;
    if constexpr (std::is_same_v<T, bfloat16_t>) {
      U32 wide;
      memcpy(&wide, &v, sizeof wide);
      const U32 rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
#if defined(__AVX512F__)
      const __m512i kept = _mm512_mask_set1_epi32(
          (__m512i)rounded, _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q), 0x7fc0);
      bits = (U16)_mm512_maskz_cvtepi32_epi16(0xffff, kept);
#else
      const U32 nan = (U32)(v != v);
      const U32 kept = (rounded & ~nan) | (nan & 0x7fc0u);
#if defined(__AVX2__)
      bits = (U16)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)kept),
                                   _mm256_extracti128_si256((__m256i)kept, 1));
#else
      bits = __builtin_convertvector(kept, U16);
#endif
#endif
    } else {
#if defined(__AVX512F__)
      bits = (U16)_mm512_maskz_cvtps_ph(0xffff, (__m512)v,
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
      bits = (U16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
      bits = narrow_to_halves(v);
#endif
    }
    return bits;
  }

  static CHATTN_INLINE void store(T* p, V v) {
    if constexpr (sizeof(T) == sizeof(A)) {
      memcpy(p, &v, sizeof v);
    } else {
      const U16 bits = narrow(v);
      memcpy(p, &bits, sizeof bits);
    }
  }

  // Past the caches; `p` is aligned to the stored vector.
  static CHATTN_INLINE void stream(T* p, V v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == sizeof(A)) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
    } else {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)narrow(v));
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == sizeof(A)) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
    } else {
      _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)narrow(v));
    }
#else
    store(p, v);
#endif
  }

  // The first `count` < kLanes elements; the other lanes are zero.
  static CHATTN_INLINE V load_partial(const T* p, int count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const unsigned mask = (1u << count) - 1u;
    if constexpr (std::is_same_v<T, float>) {
      return (V)_mm512_maskz_loadu_ps(mask, p);
    } else if constexpr (std::is_same_v<T, double>) {
      return (V)_mm512_maskz_loadu_pd(mask, p);
    } else {
      return widen((U16)_mm256_maskz_loadu_epi16(mask, p));
    }
#else
    if constexpr (sizeof(T) == 2) {
      const U64x2 words = load_bytes<2>(p, 2 * count);
      U16 bits;
      memcpy(&bits, &words, sizeof bits);
      return widen(bits);
    } else {
#if defined(__AVX2__)
      if constexpr (sizeof(T) == 4) {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return (V)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes));
      } else {
        const __m256i lanes = _mm256_setr_epi64x(0, 1, 2, 3);
        return (V)_mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lanes));
      }
#else
      return (V)load_bytes<sizeof(T)>(p, count * static_cast<int>(sizeof(T)));
#endif
    }
#endif
  }

  static CHATTN_INLINE void store_partial(T* p, V v, int count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const unsigned mask = (1u << count) - 1u;
    if constexpr (std::is_same_v<T, float>) {
      _mm512_mask_storeu_ps(p, mask, (__m512)v);
    } else if constexpr (std::is_same_v<T, double>) {
      _mm512_mask_storeu_pd(p, mask, (__m512d)v);
    } else {
      _mm256_mask_storeu_epi16(p, mask, (__m256i)narrow(v));
    }
#else
    const int bytes = count * static_cast<int>(sizeof(T));
    U64x2 words{};
    if constexpr (sizeof(T) == 2) {
      const U16 bits = narrow(v);
      memcpy(&words, &bits, sizeof bits);
    } else if constexpr (sizeof v == sizeof words) {
      words = (U64x2)v;
    } else {
      typedef std::uint64_t U64x4 __attribute__((vector_size(32)));
      const U64x4 both = (U64x4)v;
      words = __builtin_shufflevector(both, both, 0, 1);
      if (bytes & 16) {
        memcpy(p, &words, 16);
        p += 16 / sizeof(T);
        words = __builtin_shufflevector(both, both, 2, 3);
      }
    }
    store_bytes<sizeof(T)>(p, words, bytes);
#endif
  }

  // Any count, whole vectors included.
  static CHATTN_INLINE V load_some(const T* p, index_t count) {
    return count >= kLanes ? load(p) : load_partial(p, static_cast<int>(count));
  }
  static CHATTN_INLINE void store_some(T* p, V v, index_t count) {
    if (count >= kLanes) {
      store(p, v);
    } else {
      store_partial(p, v, static_cast<int>(count));
    }
  }

  // Lane p of the result is the sum of the lanes of v[p]: pairs of vectors are folded into one
  // until one is left, which takes 3 instructions a sum where summing each by itself takes 15.
  static CHATTN_INLINE V sums(const V (&v)[kLanes]) { return fold<kLanes>(v); }

  template <int kSums>
  static CHATTN_INLINE V fold(const V* v) {
    if constexpr (kSums == 1) {
      return *v;
    } else {
      return fold_pair<kSums>(fold<kSums / 2>(v), fold<kSums / 2>(v + kSums / 2),
                              std::make_integer_sequence<int, kLanes>{});
    }
  }

  // a and b hold kSums / 2 sums each, as neighbouring lanes that are still to be added.
  template <int kSums, int... kLane>
  static CHATTN_INLINE V fold_pair(V a, V b, std::integer_sequence<int, kLane...>) {
    constexpr int kPart = kLanes / kSums;
    return __builtin_shufflevector(a, b, (kLane / kPart * 2 * kPart + kLane % kPart)...) +
           __builtin_shufflevector(a, b, (kLane / kPart * 2 * kPart + kPart + kLane % kPart)...);
  }

  // The first `count` lanes; zero in the others.
  static CHATTN_INLINE V first(V v, index_t count) {
    if (count >= kLanes) return v;
    return select_first(v, count, std::make_integer_sequence<int, kLanes>{});
  }
  template <int... kLane>
  static CHATTN_INLINE V select_first(V v, index_t count, std::integer_sequence<int, kLane...>) {
    using Index = decltype(v == v);
    const Index index = {kLane...};
    return index < static_cast<std::remove_reference_t<decltype(index[0])>>(count) ? v : V{};
  }

  // NaN wins, as in torch.amax.
  static CHATTN_INLINE V max(V m, V x) { return (x > m) | (x != x) ? x : m; }
};

// N vectors as separate variables: GCC keeps an array of vectors in memory.
template <class V, int N, int I = 0>
struct Tile {
  V v{};
  Tile<V, N, I + 1> rest;

  // f(index, its vector) for each.
  template <class F>
  CHATTN_INLINE void each(F&& f) {
    f(index_t{I}, v);
    rest.each(f);
  }
  // The vector of an index.
  template <int K>
  CHATTN_INLINE V get() const {
    if constexpr (K == I) {
      return v;
    } else {
      return rest.template get<K>();
    }
  }
  CHATTN_INLINE Tile operator+(const Tile& more) const { return {v + more.v, rest + more.rest}; }
};
template <class V, int N>
struct Tile<V, N, N> {
  template <class F>
  CHATTN_INLINE void each(F&&) {}
  CHATTN_INLINE Tile operator+(const Tile&) const { return {}; }
};

// A tile of these vectors.
template <class V, int N, int I = 0, class... More>
CHATTN_INLINE Tile<V, N, I> tile_of(V first, More... more) {
  if constexpr (I + 1 == N) {
    return {first, {}};
  } else {
    return {first, tile_of<V, N, I + 1>(more...)};
  }
}

// Calls body(first, std::integral_constant<int, R>) for tiles of at most R of [row, rows), the
// largest first.
template <int R, class Body>
CHATTN_INLINE void for_tiles(index_t row, index_t rows, Body&& body) {
  for (; row + R <= rows; row += R) body(row, std::integral_constant<int, R>{});
  if constexpr (R > 1) {
    if (row < rows) for_tiles<R / 2>(row, rows, body);
  }
}

// Calls body(offset, count) for every vector of [0, length); the last may be partial.
template <int kLanes, class Body>
CHATTN_INLINE void for_vectors(index_t length, Body&& body) {
  index_t i = 0;
  for (; i + kLanes <= length; i += kLanes) body(i, static_cast<index_t>(kLanes));
  if (i < length) body(i, length - i);
}

}  // namespace chattn::CHATTN_ISA
