// The passes of a fused tail (engine/tail.h) over a region of the map. Compiled per instruction
// set.
#pragma once
#include "engine/cpu/activations.h"
#include "engine/cpu/passes.h"
#include "engine/cpu/tail_rows.h"
#include "engine/tail.h"

namespace chattn::CHATTN_ISA {

// How a pass knows an activation: the usual ones at compile time, others by a call. masked: the
// bits that the forward left tell where its derivative is 1; elsewhere it is 0.
enum class Known { identity, relu, silu, hard_swish, masked, other };
constexpr Act act_of(Known known) {
  return known == Known::relu         ? Act::relu
         : known == Known::silu       ? Act::silu
         : known == Known::hard_swish ? Act::hard_swish
                                      : Act::identity;
}

template <Known k, class A>
CHATTN_INLINE typename Simd<A>::V activated(Act f, typename Simd<A>::V z, A param) {
  if constexpr (k == Known::other) {
    return activate_vector<A>(f, z, param);
  } else {
    return activate_vector<act_of(k), A>(z, param);
  }
}
template <Known k, class A>
CHATTN_INLINE typename Simd<A>::V through(Act f, typename Simd<A>::V z, A param,
                                          typename Simd<A>::V g) {
  if constexpr (k == Known::other) {
    return activation_gradient_vector<A>(f, z, param, g);
  } else {
    return activation_gradient_vector<act_of(k), A>(z, param, g);
  }
}

// ---- sums
// K sums over every plane of the terms(offset in the plane, count), a tile, that of_plane(c)
// returns.
template <class T, int K, class OfPlane>
CHATTN_INLINE void plane_states(const MapShape& s, index_t c0, index_t c1, acc_t<T>* out,
                                OfPlane&& of_plane) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  using V = typename S::V;
  constexpr index_t kL = S::kLanes;
  for (index_t c = c0; c < c1; c += kL) {
    const index_t planes = c1 - c < kL ? c1 - c : kL;
    V parts[K][kL] = {};
    for (index_t p = 0; p < planes; ++p) {
      const index_t part = part_of_sum(s.hw / kL, 256) * kL;
      const auto terms = of_plane(c + p);
      index_t i = 0;
      do {
        const index_t end = s.hw - i < part ? s.hw : i + part;
        Tile<V, K> even, odd;
        for (; i + 2 * kL <= end; i += 2 * kL) {
          even = even + terms(i, kL);
          odd = odd + terms(i + kL, kL);
        }
        if (i + kL <= end) {
          even = even + terms(i, kL);
          i += kL;
        }
        if (i < end) odd = odd + terms(i, end - i);
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
    plane_states<T, 2>(s, at.c0, at.c1, sums, [&](index_t c) CHATTN_INLINE_LAMBDA {
      const T* const plane = x + c * s.hw;
      const V first = S::broadcast(shift[c]);
      return [=](index_t i, index_t count) CHATTN_INLINE_LAMBDA {
        const V d = S::first(S::load_some(plane + i, count) - first, count);
        return tile_of<V, 2>(d, d * d);
      };
    });
    return;
  }
  const index_t fold = positions_per_row<T>(s, true);
  const acc_t<T>* const rows[1] = {shift};
  const Rows<acc_t<T>, 1> shifts(rows, s.c, fold);
  const acc_t<T>* const first = shifts.at[0];
  column_sums<T, 2>(
      s, at, true, 1, sums, [&](int, index_t p, index_t c, index_t count) CHATTN_INLINE_LAMBDA {
        const V d = S::load_some(x + p * s.c + c, count) - SA::load_some(first + c, count);
        return tile_of<V, 2>(d, d * d);
      });
}

// The rows of TailNumbers, as far as a pass reads them.
enum { kScale, kShift, kGate, kMean, kPooled, kConstant, kSlope };

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

  // w = inner(u)
  CHATTN_INLINE V inner(V u) const {
    return activated<kInner, A>(f.inner, u, static_cast<A>(f.inner_param));
  }
  CHATTN_INLINE V through_inner(V u, V g) const {
    return through<kInner, A>(f.inner, u, static_cast<A>(f.inner_param), g);
  }
  // What `act` is applied to, at `offset`. Without an inner activation the gate is in u
  // (TailNumbers), and its row is not read.
  template <class Numbers>
  CHATTN_INLINE V before_act(V w, const Numbers& numbers, index_t i, index_t offset,
                             index_t count) const {
    V z = w;
    if constexpr (kInner != Known::identity) z *= numbers.template at<kGate>(i, count);
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
  const A* const rows[] = {static_cast<const A*>(n.scale), static_cast<const A*>(n.shift),
                           static_cast<const A*>(n.gate)};
  for_runs<T>(
      s, at, rows,
      [&](index_t offset, index_t byte, index_t length, const auto& numbers) CHATTN_INLINE_LAMBDA {
        const auto value = [&]<bool kMask>(index_t i, index_t count) CHATTN_INLINE_LAMBDA {
          const V u =
              numbers.template at<kScale>(i, count) * S::load_some(tail.x + offset + i, count) +
              numbers.template at<kShift>(i, count);
          const V z = tail.before_act(tail.inner(u), numbers, i, offset + i, count);
          if constexpr (kMask) Bits<A>::store(mask + byte, i, count, Bits<A>::of(tail.on(z)));
          return tail.act(z);
        };
        if (kAct != Known::identity && mask) {
          write_run<false>(y + offset, length, stream,
                           [&](index_t i, index_t count) CHATTN_INLINE_LAMBDA {
                             return value.template operator()<true>(i, count);
                           });
        } else {
          write_run(y + offset, length, stream, [&](index_t i, index_t count) CHATTN_INLINE_LAMBDA {
            return value.template operator()<false>(i, count);
          });
        }
      });
}

template <class T, Known kInner, Known kAct>
void tail_sums(const MapShape& s, const TailMaps& maps, const TailFunctions& f,
               const TailNumbers& n, const Region& at, acc_t<T>* sums) {
  using A = acc_t<T>;
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int kSums = kInner == Known::identity ? 2 : 5;
  const Tail<T, kInner, kAct> tail(maps, f);
  constexpr int kRows = kMean + 1;
  const A* const rows[kRows] = {static_cast<const A*>(n.scale), static_cast<const A*>(n.shift),
                                static_cast<const A*>(n.gate), static_cast<const A*>(n.mean)};
  const MaskShape shape(s);
  const index_t sample = at.n * s.c * s.hw, bytes = at.n * (shape.bytes() / s.n);
  // The terms of the sums at a vector.
  const auto terms = [&tail](index_t offset, const std::uint8_t* bits, index_t i, index_t count,
                             const auto& numbers) CHATTN_INLINE_LAMBDA {
    const V x = S::load_some(tail.x + offset, count);
    const V d = x - numbers.template at<kMean>(i, count);
    const V u = numbers.template at<kScale>(i, count) * x + numbers.template at<kShift>(i, count);
    const V w = tail.inner(u);
    const V g = tail.gradient(offset, bits, i, count, [&]() CHATTN_INLINE_LAMBDA {
      return tail.before_act(w, numbers, i, offset, count);
    });
    if constexpr (kSums == 2) {
      return tile_of<V, 2>(g, g * d);
    } else {
      const V m = tail.through_inner(u, S::first(S::broadcast(A(1)), count)), mg = m * g;
      return tile_of<V, 5>(g * w, mg, mg * d, m, m * d);
    }
  };
  if (!s.channels_last) {
    plane_states<T, kSums>(s, at.c0, at.c1, sums, [&](index_t c) CHATTN_INLINE_LAMBDA {
      const index_t plane = sample + c * s.hw;
      const std::uint8_t* const bits = tail.mask + bytes + c * shape.pitch;
      return [=, numbers = PlaneNumbers<T, kRows>(rows, c)](index_t i, index_t count)
                 CHATTN_INLINE_LAMBDA { return terms(plane + i, bits, i, count, numbers); };
    });
    return;
  }
  const index_t fold = tail_positions<T>(s);
  const Rows<A, kRows> repeated(rows, s.c, fold);
  const RowNumbers<A, kRows> numbers{repeated.at, 0};
  column_sums<T, kSums>(s, at, s.c % 8 == 0, 1, sums,
                        [&](int, index_t p, index_t c, index_t count) CHATTN_INLINE_LAMBDA {
                          return terms(sample + p * s.c + c, tail.mask + bytes + p * shape.pitch, c,
                                       count, numbers);
                        });
}

template <class T, Known kInner, Known kAct>
void tail_gradient(const MapShape& s, const TailMaps& maps, const TailFunctions& f,
                   const TailNumbers& n, const Region& at, T* dx, T* dresidual, bool stream) {
  using A = acc_t<T>;
  using S = Simd<T>;
  using V = typename S::V;
  const Tail<T, kInner, kAct> tail(maps, f);
  const A* const rows[] = {static_cast<const A*>(n.scale),   static_cast<const A*>(n.shift),
                           static_cast<const A*>(n.gate),    static_cast<const A*>(n.mean),
                           static_cast<const A*>(n.dpooled), static_cast<const A*>(n.constant),
                           static_cast<const A*>(n.slope)};
  for_runs<T>(
      s, at, rows,
      [&](index_t offset, index_t byte, index_t length, const auto& numbers) CHATTN_INLINE_LAMBDA {
        const std::uint8_t* const bits = tail.mask + byte;
        const auto before = [&](index_t i, index_t count, V x) CHATTN_INLINE_LAMBDA {
          return numbers.template at<kScale>(i, count) * x + numbers.template at<kShift>(i, count);
        };
        const auto gradient = [&](index_t i, index_t count, V u) CHATTN_INLINE_LAMBDA {
          return tail.gradient(offset + i, bits, i, count, [&]() CHATTN_INLINE_LAMBDA {
            return tail.before_act(tail.inner(u), numbers, i, offset + i, count);
          });
        };
        if (dx)
          write_run<kAct != Known::masked>(
              dx + offset, length, stream, [&](index_t i, index_t count) CHATTN_INLINE_LAMBDA {
                const V x = S::load_some(tail.x + offset + i, count), u = before(i, count, x);
                V dw = gradient(i, count, u);
                if constexpr (kInner != Known::identity)
                  dw = numbers.template at<kGate>(i, count) * dw +
                       numbers.template at<kPooled>(i, count);
                // By running statistics the slope is 0, whatever x is.
                const V slope = numbers.template at<kSlope>(i, count);
                const V lost =
                    slope == A(0) ? V{} : slope * (x - numbers.template at<kMean>(i, count));
                return numbers.template at<kScale>(i, count) * tail.through_inner(u, dw) -
                       numbers.template at<kConstant>(i, count) - lost;
              });
        if (dresidual)
          write_run<kAct != Known::masked>(dresidual + offset, length, stream,
                                           [&](index_t i, index_t count) CHATTN_INLINE_LAMBDA {
                                             V u{};
                                             if (kAct != Known::masked)
                                               u = before(i, count,
                                                          S::load_some(tail.x + offset + i, count));
                                             return gradient(i, count, u);
                                           });
      });
}

}  // namespace chattn::CHATTN_ISA
