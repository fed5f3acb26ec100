// The passes of a fused tail (engine/tail.h) over a region of the map. Compiled per instruction
// set.
#pragma once
#include "engine/cpu/activations.h"
#include "engine/cpu/passes.h"
#include "engine/tail.h"

namespace chattn::CHATTN_ISA {

// How a pass knows an activation: the usual ones at compile time, others by a call. masked: the
// bits that the forward left tell where its derivative is 1; elsewhere it is 0.
enum class Known { identity, relu, silu, masked, other };

template <Known k, class A>
CHATTN_INLINE typename Simd<A>::V activated(Act f, typename Simd<A>::V z, A param) {
  if constexpr (k == Known::other) {
    return activate_vector<A>(f, z, param);
  } else {
    constexpr Act kAct = k == Known::relu   ? Act::relu
                         : k == Known::silu ? Act::silu
                                            : Act::identity;
    return activate_vector<kAct, A>(z, param);
  }
}
template <Known k, class A>
CHATTN_INLINE typename Simd<A>::V through(Act f, typename Simd<A>::V z, A param,
                                          typename Simd<A>::V g) {
  if constexpr (k == Known::other) {
    return activation_gradient_vector<A>(f, z, param, g);
  } else {
    constexpr Act kAct = k == Known::relu   ? Act::relu
                         : k == Known::silu ? Act::silu
                                            : Act::identity;
    return activation_gradient_vector<kAct, A>(z, param, g);
  }
}

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
  A copy[R * kLongestRow];

  CHATTN_INLINE Rows(const A* const (&rows)[R], index_t c, index_t fold) {
    for (int r = 0; r < R; ++r) at[r] = fold > 1 ? copy + r * kLongestRow : rows[r];
    if (fold == 1) return;
    for (int r = 0; r < R; ++r)
      for (index_t i = 0; i < c * fold; ++i)
        copy[r * kLongestRow + i] = i < c ? rows[r][i] : copy[r * kLongestRow + i - c];
  }
};

// How many positions make a row: each must begin with a byte of the mask.
template <class T>
CHATTN_INLINE index_t tail_positions(const MapShape& s) {
  return positions_per_row<T>(s, s.c % 8 == 0);
}

// run(offset in the map, byte of the mask, length, numbers) for every contiguous run of a region,
// with numbers(i, count, v): the R rows at its element i.
template <class T, int R, class Run>
CHATTN_INLINE void for_runs(const MapShape& s, const Region& at, const acc_t<T>* const (&rows)[R],
                            Run&& run) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  using V = typename S::V;
  const MaskShape mask(s);
  const index_t sample = at.n * s.c * s.hw, sample_mask = at.n * (mask.bytes() / s.n);
  if (!s.channels_last) {
    for (index_t c = at.c0; c < at.c1; ++c) {
      V same[R];
      for (int r = 0; r < R; ++r) same[r] = S::broadcast(rows[r][c]);
      run(sample + c * s.hw, sample_mask + c * mask.pitch, s.hw, [&](index_t, index_t, V(&v)[R]) {
        for (int r = 0; r < R; ++r) v[r] = same[r];
      });
    }
    return;
  }
  const index_t fold = tail_positions<T>(s);
  const Rows<acc_t<T>, R> repeated(rows, s.c, fold);
  for (index_t p = at.p0; p < at.p1; p += fold) {
    const index_t width = fold == 1 ? at.c1 - at.c0 : s.c * (fold < at.p1 - p ? fold : at.p1 - p);
    run(sample + p * s.c + at.c0, sample_mask + p * mask.pitch + at.c0 / 8, width,
        [&](index_t i, index_t count, V(&v)[R]) {
          for (int r = 0; r < R; ++r) v[r] = SA::load_some(repeated.at[r] + at.c0 + i, count);
        });
  }
}

// K sums over every plane of the terms(c, offset in the plane, count), a tile.
template <class T, int K, class Terms>
CHATTN_INLINE void plane_states(const MapShape& s, index_t c0, index_t c1, acc_t<T>* out,
                                Terms&& terms) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  using V = typename S::V;
  constexpr index_t kL = S::kLanes;
  for (index_t c = c0; c < c1; c += kL) {
    const index_t planes = c1 - c < kL ? c1 - c : kL;
    V parts[K][kL] = {};
    for (index_t p = 0; p < planes; ++p) {
      const index_t part = part_of_sum(s.hw / kL, 256) * kL;
      index_t i = 0;
      do {
        const index_t end = s.hw - i < part ? s.hw : i + part;
        Tile<V, K> even, odd;
        for (; i + 2 * kL <= end; i += 2 * kL) {
          even = even + terms(c + p, i, kL);
          odd = odd + terms(c + p, i + kL, kL);
        }
        if (i + kL <= end) {
          even = even + terms(c + p, i, kL);
          i += kL;
        }
        if (i < end) odd = odd + terms(c + p, i, end - i);
        i = end;
        (even + odd).each([&](index_t k, V v) CHATTN_INLINE_LAMBDA { parts[k][p] += v; });
      } while (i < s.hw);
    }
    for (int k = 0; k < K; ++k) SA::store_some(out + k * s.c + c, S::sums(parts[k]), planes);
  }
}

// ---- the table's functions

// sums[0][c] = sum of x - shift[c], sums[1][c] = sum of its square.
template <class T>
void moments(const MapShape& s, const T* x, const Region& at, const acc_t<T>* shift,
             acc_t<T>* sums) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  using V = typename S::V;
  x += at.n * s.c * s.hw;
  if (!s.channels_last) {
    plane_states<T, 2>(s, at.c0, at.c1, sums, [&](index_t c, index_t i, index_t count) {
      const V d = S::first(S::load_some(x + c * s.hw + i, count) - S::broadcast(shift[c]), count);
      return tile_of<V, 2>(d, d * d);
    });
    return;
  }
  const index_t fold = positions_per_row<T>(s, true);
  const acc_t<T>* const rows[1] = {shift};
  const Rows<acc_t<T>, 1> shifts(rows, s.c, fold);
  column_sums<T, 2>(s, at, true, 1, sums, [&](int, index_t p, index_t c, index_t count) {
    const V d = S::load_some(x + p * s.c + c, count) - SA::load_some(shifts.at[0] + c, count);
    return tile_of<V, 2>(d, d * d);
  });
}

// A tail's value and gradients at one vector of positions.
template <class T, Known kInner, Known kAct>
struct Tail {
  using A = acc_t<T>;
  using S = Simd<T>;
  using V = typename S::V;
  TailFunctions f;
  const T *x, *residual, *dy;
  const std::uint8_t* mask;

  Tail(const TailMaps& maps, const TailFunctions& functions)
      : f(functions),
        x(static_cast<const T*>(maps.x)),
        residual(static_cast<const T*>(maps.residual)),
        dy(static_cast<const T*>(maps.dy)),
        mask(static_cast<const std::uint8_t*>(maps.mask)) {}

  CHATTN_INLINE V inner(V v) const {
    return activated<kInner, A>(f.inner, v, static_cast<A>(f.inner_param));
  }
  CHATTN_INLINE V through_inner(V v, V g) const {
    return through<kInner, A>(f.inner, v, static_cast<A>(f.inner_param), g);
  }
  // What `act` is applied to, at `offset`; w = inner(scale*x + shift).
  CHATTN_INLINE V before_act(V w, V gate, index_t offset, index_t count) const {
    V z = gate * w;
    if (residual) z += S::load_some(residual + offset, count);
    return z;
  }
  CHATTN_INLINE V act(V z) const {
    return activated<kAct, A>(f.act, z, static_cast<A>(f.act_param));
  }
  // Where the derivative of a masked activation is 1.
  CHATTN_INLINE auto on(V z) const {
    const auto positive = ~(z <= A(0));
    if (kAct == Known::relu || f.act == Act::relu) return positive;
    return (z > A(0)) & (z < A(6));
  }
  // act' * dy; with a mask from its bits, else from z().
  template <class Z>
  CHATTN_INLINE V gradient(index_t offset, const std::uint8_t* bits, index_t i, index_t count,
                           Z&& z) const {
    const V g = S::load_some(dy + offset, count);
    if constexpr (kAct == Known::identity) {
      return g;
    } else if constexpr (kAct == Known::masked) {
      return Bits<A>::lanes(Bits<A>::load(bits, i, count)) ? g : V{};
    } else {
      return through<kAct, A>(f.act, z(), static_cast<A>(f.act_param), g);
    }
  }
};

template <class T, Known kInner, Known kAct>
void tail(const MapShape& s, const TailMaps& maps, const TailFunctions& f, const TailNumbers& n,
          const Region& at, T* y, std::uint8_t* mask, bool stream) {
  using A = acc_t<T>;
  using S = Simd<T>;
  using V = typename S::V;
  const Tail<T, kInner, kAct> tail(maps, f);
  const A* const rows[3] = {static_cast<const A*>(n.scale), static_cast<const A*>(n.shift),
                            static_cast<const A*>(n.gate)};
  for_runs<T>(s, at, rows, [&](index_t offset, index_t byte, index_t length, auto&& numbers) {
    write_run(y + offset, length, stream, [&](index_t i, index_t count) {
      V v[3];
      numbers(i, count, v);
      const V w = tail.inner(v[0] * S::load_some(tail.x + offset + i, count) + v[1]);
      const V z = tail.before_act(w, v[2], offset + i, count);
      if (kAct != Known::identity && mask)
        Bits<A>::store(mask + byte, i, count, Bits<A>::of(tail.on(z)));
      return tail.act(z);
    });
  });
}

template <class T, Known kInner, Known kAct>
void tail_sums(const MapShape& s, const TailMaps& maps, const TailFunctions& f,
               const TailNumbers& n, const Region& at, acc_t<T>* sums) {
  using A = acc_t<T>;
  using S = Simd<T>;
  using SA = Simd<A>;
  using V = typename S::V;
  constexpr int kSums = kInner == Known::identity ? 2 : 5;
  const Tail<T, kInner, kAct> tail(maps, f);
  const A* const rows[4] = {static_cast<const A*>(n.scale), static_cast<const A*>(n.shift),
                            static_cast<const A*>(n.gate), static_cast<const A*>(n.mean)};
  const MaskShape shape(s);
  const index_t sample = at.n * s.c * s.hw, bytes = at.n * (shape.bytes() / s.n);
  // The terms of the sums at a vector.
  const auto terms = [&](index_t offset, const std::uint8_t* bits, index_t i, index_t count,
                         const V(&v)[4]) CHATTN_INLINE_LAMBDA {
    const V x = S::load_some(tail.x + offset, count), d = x - v[3];
    const V u = v[0] * x + v[1], w = tail.inner(u);
    const V g = tail.gradient(offset, bits, i, count,
                              [&] { return tail.before_act(w, v[2], offset, count); });
    if constexpr (kSums == 2) {
      return tile_of<V, 2>(g, g * d);
    } else {
      const V m = tail.through_inner(u, S::first(S::broadcast(A(1)), count)), mg = m * g;
      return tile_of<V, 5>(g * w, mg, mg * d, m, m * d);
    }
  };
  if (!s.channels_last) {
    plane_states<T, kSums>(s, at.c0, at.c1, sums, [&](index_t c, index_t i, index_t count) {
      V same[4];
      for (int r = 0; r < 4; ++r) same[r] = S::broadcast(rows[r][c]);
      return terms(sample + c * s.hw + i, tail.mask + bytes + c * shape.pitch, i, count, same);
    });
    return;
  }
  const index_t fold = tail_positions<T>(s);
  const Rows<A, 4> repeated(rows, s.c, fold);
  column_sums<T, kSums>(
      s, at, s.c % 8 == 0, 1, sums, [&](int, index_t p, index_t c, index_t count) {
        V v[4];
        for (int r = 0; r < 4; ++r) v[r] = SA::load_some(repeated.at[r] + c, count);
        return terms(sample + p * s.c + c, tail.mask + bytes + p * shape.pitch, c, count, v);
      });
}

template <class T, Known kInner, Known kAct>
void tail_gradient(const MapShape& s, const TailMaps& maps, const TailFunctions& f,
                   const TailNumbers& n, const Region& at, T* dx, T* dresidual, bool stream) {
  using A = acc_t<T>;
  using S = Simd<T>;
  using V = typename S::V;
  const Tail<T, kInner, kAct> tail(maps, f);
  const A* const rows[7] = {static_cast<const A*>(n.scale),   static_cast<const A*>(n.shift),
                            static_cast<const A*>(n.gate),    static_cast<const A*>(n.mean),
                            static_cast<const A*>(n.dpooled), static_cast<const A*>(n.constant),
                            static_cast<const A*>(n.slope)};
  for_runs<T>(s, at, rows, [&](index_t offset, index_t byte, index_t length, auto&& numbers) {
    const std::uint8_t* const bits = tail.mask + byte;
    const auto gradient = [&](index_t i, index_t count, const V(&v)[7], V u) CHATTN_INLINE_LAMBDA {
      return tail.gradient(offset + i, bits, i, count,
                           [&] { return tail.before_act(tail.inner(u), v[2], offset + i, count); });
    };
    if (dx)
      write_run(dx + offset, length, stream, [&](index_t i, index_t count) {
        V v[7];
        numbers(i, count, v);
        const V x = S::load_some(tail.x + offset + i, count), u = v[0] * x + v[1];
        const V dw = v[2] * gradient(i, count, v, u) + v[4];
        // By running statistics the slope is 0, whatever x is.
        const V lost = v[6] == A(0) ? V{} : v[6] * (x - v[3]);
        return v[0] * tail.through_inner(u, dw) - v[5] - lost;
      });
    if (dresidual)
      write_run(dresidual + offset, length, stream, [&](index_t i, index_t count) {
        V v[7];
        numbers(i, count, v);
        V u{};
        if (kAct != Known::masked) u = v[0] * S::load_some(tail.x + offset + i, count) + v[1];
        return gradient(i, count, v, u);
      });
  });
}

}  // namespace chattn::CHATTN_ISA
