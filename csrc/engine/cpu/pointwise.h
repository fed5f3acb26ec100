// Activations over arrays of accumulators. Compiled per instruction set: sigmoid, which every gate
// runs over (N, C), as vectors by hand; the others as the compiler can.
#pragma once
#include <math.h>

#include <type_traits>

#include "common/activation.h"
#include "engine/cpu/simd.h"

namespace chattn::CHATTN_ISA {

typedef std::int32_t I32 __attribute__((vector_size(kVectorBytes)));

// exp of float32, within 2 ulp: 2^n * p(r), r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2], p of degree 6.
// Below -87 the result stays 1.6e-38; from 89 on it is infinite.
CHATTN_INLINE Simd<float>::V exp_vector(Simd<float>::V x) {
  using S = Simd<float>;
  using V = S::V;
  x = x < S::broadcast(-87.f) ? S::broadcast(-87.f) : x;  // keeps NaN
  x = x > S::broadcast(89.f) ? S::broadcast(89.f) : x;
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
  const V magic = S::broadcast(12582912.f);
  const V n = (x * S::broadcast(1.44269504088896341f) + magic) - magic;
  const V r = x - n * S::broadcast(0.693359375f) - n * S::broadcast(-2.12194440e-4f);
  V p = S::broadcast(1.9875691500e-4f);
  p = p * r + S::broadcast(1.3981999507e-3f);
  p = p * r + S::broadcast(8.3334519073e-3f);
  p = p * r + S::broadcast(4.1665795894e-2f);
  p = p * r + S::broadcast(1.6666665459e-1f);
  p = p * r + S::broadcast(5.0000001201e-1f);
  p = p * r * r + r + S::broadcast(1.f);
  const I32 exponent = (__builtin_convertvector(n, I32) + 127) << 23;
  V scale;
  memcpy(&scale, &exponent, sizeof scale);
  return p * scale;  // a product, so that NaN stays NaN
}

// body(a constant equal to f), so that a loop over elements has no switch and can be vectorised.
template <int I = 0, class Body>
CHATTN_INLINE void with_constant(Act f, Body&& body) {
  if (f == static_cast<Act>(I)) {
    body(std::integral_constant<Act, static_cast<Act>(I)>{});
  } else if constexpr (I + 1 < kActCount) {
    with_constant<I + 1>(f, body);
  }
}

template <class A>
void activate_array(Act f, A param, A* values, index_t count) {
  if constexpr (std::is_same_v<A, float>) {
    if (f == Act::sigmoid) {
      using S = Simd<float>;
      const S::V one = S::broadcast(1.f);
      for_vectors<S::kLanes>(count, [&](index_t i, index_t lanes) {
        const S::V z = S::load_some(values + i, lanes);
        S::store_some(values + i, one / (one + exp_vector(-z)), lanes);
      });
      return;
    }
  }
  with_constant(f, [&](auto act) {
    for (index_t i = 0; i < count; ++i) values[i] = activate(act(), values[i], param);
  });
}

template <class A>
void activate_backward(Act f, A param, const A* z, A* values, A* grad, index_t count) {
  with_constant(f, [&](auto act) {
    for (index_t i = 0; i < count; ++i) {
      grad[i] = activation_gradient(act(), z[i], param, grad[i]);
      values[i] = activate(act(), z[i], param);
    }
  });
}

template <class A>
void gate_backward(Act f, const A* gate, const A* dgate, A* grad, index_t count) {
  if (dgate)
    for (index_t i = 0; i < count; ++i) grad[i] += dgate[i];
  with_constant(f, [&](auto act) {
    if constexpr (is_gate(act()))
      for (index_t i = 0; i < count; ++i) grad[i] = gate_gradient(act(), gate[i], grad[i]);
  });
}

template <class A>
CHATTN_INLINE typename Simd<A>::V exp_lanes(typename Simd<A>::V x) {
  if constexpr (std::is_same_v<A, float>) {
    return exp_vector(x);
  } else {
    for (int i = 0; i < Simd<A>::kLanes; ++i) x[i] = exp(x[i]);
    return x;
  }
}

// The largest logit is subtracted first, so that nothing overflows.
template <class A>
void softmax(const A* logits, A* gate, index_t rows, index_t stride, index_t count) {
  using S = Simd<A>;
  using V = typename S::V;
  for_vectors<S::kLanes>(count, [&](index_t i, index_t lanes) {
    V top = S::load_some(logits + i, lanes), total{};
    for (index_t r = 1; r < rows; ++r)
      top = S::max(top, S::load_some(logits + r * stride + i, lanes));
    for (index_t r = 0; r < rows; ++r) {
      const V e = exp_lanes<A>(S::load_some(logits + r * stride + i, lanes) - top);
      total += e;
      S::store_some(gate + r * stride + i, e, lanes);
    }
    const V scale = S::broadcast(A(1)) / total;
    for (index_t r = 0; r < rows; ++r) {
      A* g = gate + r * stride + i;
      S::store_some(g, S::load_some(g, lanes) * scale, lanes);
    }
  });
}

template <class A>
void softmax_backward(const A* gate, A* grad, index_t rows, index_t stride, index_t count) {
  using S = Simd<A>;
  using V = typename S::V;
  for_vectors<S::kLanes>(count, [&](index_t i, index_t lanes) {
    V total{};
    for (index_t r = 0; r < rows; ++r)
      total +=
          S::load_some(gate + r * stride + i, lanes) * S::load_some(grad + r * stride + i, lanes);
    for (index_t r = 0; r < rows; ++r) {
      A* g = grad + r * stride + i;
      const V s = S::load_some(gate + r * stride + i, lanes);
      S::store_some(g, s * (S::load_some(g, lanes) - total), lanes);
    }
  });
}

}  // namespace chattn::CHATTN_ISA
