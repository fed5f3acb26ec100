// What the passes of a tail read beside the maps: masks, and numbers per channel. Compiled per
// instruction set.
#pragma once
#include "engine/cpu/passes.h"
#include "engine/tail.h"

namespace chattn::CHATTN_ISA {

// ---- masks: bit i of a row is that of its element i
template <class A>
struct Bits {
  using S = Simd<A>;
  using V = typename S::V;
  using Mask = decltype(V{} == V{});
  static constexpr int kLanes = S::kLanes;

  static CHATTN_INLINE unsigned of(Mask on) {
#if defined(__AVX512F__)
    if constexpr (kLanes == 16) {
      return _mm512_cmplt_epi32_mask((__m512i)on, _mm512_setzero_si512());
    } else {
      return _mm512_cmplt_epi64_mask((__m512i)on, _mm512_setzero_si512());
    }
#elif defined(__AVX2__)
    if constexpr (kLanes == 8) {
      return static_cast<unsigned>(_mm256_movemask_ps((__m256)on));
    } else {
      return static_cast<unsigned>(_mm256_movemask_pd((__m256d)on));
    }
#else
    unsigned bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= (on[i] ? 1u : 0u) << i;
    return bits;
#endif
  }
  static CHATTN_INLINE Mask lanes(unsigned bits) {
    return lanes_of(bits, std::make_integer_sequence<int, kLanes>{});
  }
  template <int... kLane>
  static CHATTN_INLINE Mask lanes_of(unsigned bits, std::integer_sequence<int, kLane...>) {
    using Lane = std::remove_reference_t<decltype(Mask{}[0])>;
    const Mask each = {(Lane{1} << kLane)...};
    return ((Mask{} + static_cast<Lane>(bits)) & each) != 0;
  }

  // A vector's bits, from its first element i on: a multiple of the lanes.
  static CHATTN_INLINE void store(std::uint8_t* row, index_t i, index_t count, unsigned bits) {
    std::uint8_t* const p = row + i / 8;
    if constexpr (kLanes < 8) {
      const unsigned before = i % 8 == 0 ? 0u : *p;
      *p = static_cast<std::uint8_t>(before | (bits << (i % 8)));
    } else {
      p[0] = static_cast<std::uint8_t>(bits);
      if (kLanes > 8 && count > 8) p[1] = static_cast<std::uint8_t>(bits >> 8);
    }
  }
  static CHATTN_INLINE unsigned load(const std::uint8_t* row, index_t i, index_t count) {
    const std::uint8_t* const p = row + i / 8;
    if constexpr (kLanes < 8) return static_cast<unsigned>(*p) >> (i % 8);
    unsigned bits = p[0];
    if (kLanes > 8 && count > 8) bits |= static_cast<unsigned>(p[1]) << 8;
    return bits;
  }
};

// ---- numbers per channel
// R rows of them, repeated for every position of a row of several.
template <class A, int R>
struct Rows {
  const A* at[R];
  alignas(kVectorBytes) A copy[R * kLongestRow];

  CHATTN_INLINE Rows(const A* const (&rows)[R], index_t c, index_t fold) {
    for (int r = 0; r < R; ++r) {
      at[r] = rows[r];
      if (fold > 1) at[r] = repeat_row(copy + r * c * fold, rows[r], c, fold);
    }
  }
};

// How many positions make a row: each must begin with a byte of the mask.
template <class T>
CHATTN_INLINE index_t tail_positions(const MapShape& s) {
  return positions_per_row<T>(s, s.c % 8 == 0);
}

// The R numbers at an element of a plane: its channel's, in registers.
template <class T, int R>
struct PlaneNumbers {
  Tile<typename Simd<T>::V, R> same;

  CHATTN_INLINE PlaneNumbers(const acc_t<T>* const (&rows)[R], index_t c) {
    same.each([&](index_t r, auto& v) CHATTN_INLINE_LAMBDA { v = Simd<T>::broadcast(rows[r][c]); });
  }
  template <int K>
  CHATTN_INLINE typename Simd<T>::V at(index_t, index_t) const {
    return same.template get<K>();
  }
};

// At an element of a row, in memory: those alone are read that are asked for.
template <class A, int R>
struct RowNumbers {
  const A* const (&rows)[R];
  index_t first;

  template <int K>
  CHATTN_INLINE typename Simd<A>::V at(index_t i, index_t count) const {
    return Simd<A>::load_some(rows[K] + first + i, count);
  }
};

// run(offset in the map, byte of the mask, length, numbers) for every contiguous run of a region.
// It is inlined, and must inline what it calls: a call for every vector takes longer than a pass.
template <class T, int R, class Run>
CHATTN_INLINE void for_runs(const MapShape& s, const Region& at, const acc_t<T>* const (&rows)[R],
                            Run&& run) {
  using A = acc_t<T>;
  const MaskShape mask(s);
  const index_t sample = at.n * s.c * s.hw, sample_mask = at.n * (mask.bytes() / s.n);
  if (!s.channels_last) {
    for (index_t c = at.c0; c < at.c1; ++c)
      run(sample + c * s.hw, sample_mask + c * mask.pitch, s.hw, PlaneNumbers<T, R>(rows, c));
    return;
  }
  const index_t fold = tail_positions<T>(s);
  const Rows<A, R> repeated(rows, s.c, fold);
  const RowNumbers<A, R> numbers{repeated.at, at.c0};
  for (index_t p = at.p0; p < at.p1; p += fold) {
    const index_t width = fold == 1 ? at.c1 - at.c0 : s.c * (fold < at.p1 - p ? fold : at.p1 - p);
    run(sample + p * s.c + at.c0, sample_mask + p * mask.pitch + at.c0 / 8, width, numbers);
  }
}

}  // namespace chattn::CHATTN_ISA
