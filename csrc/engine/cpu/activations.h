// Activations of vectors of accumulators. Compiled per instruction set. In float the exponential is
// a polynomial and all is vector code; in double the elementary functions go lane by lane.
#pragma once
#include <math.h>

#include <type_traits>

#include "common/activation.h"
#include "engine/cpu/simd.h"

namespace chattn::CHATTN_ISA {

// The greater of x and a bound, and the smaller; NaN stays. GCC makes two instructions of a choice.
template <class A>
CHATTN_INLINE typename Simd<A>::V at_least(typename Simd<A>::V x, A low) {
  const auto bound = Simd<A>::broadcast(low);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>)
    return (decltype(x))_mm512_maskz_max_ps(0xffff, (__m512)bound, (__m512)x);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<A, float>)
    return (decltype(x))_mm256_max_ps((__m256)bound, (__m256)x);
#endif
  return x < bound ? bound : x;
}
template <class A>
CHATTN_INLINE typename Simd<A>::V at_most(typename Simd<A>::V x, A high) {
  const auto bound = Simd<A>::broadcast(high);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>)
    return (decltype(x))_mm512_maskz_min_ps(0xffff, (__m512)bound, (__m512)x);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<A, float>)
    return (decltype(x))_mm256_min_ps((__m256)bound, (__m256)x);
#endif
  return x > bound ? bound : x;
}

// exp(x) = (rest + 1) * scale of float32: 2^n * p(r), r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2], p of
// degree 6.
struct Exponential {
  Simd<float>::V rest, scale;
};
CHATTN_INLINE Exponential exponential(Simd<float>::V x) {
  using S = Simd<float>;
  using V = S::V;
  x = at_most(at_least(x, -87.f), 89.f);
  // 1.5 * 2^23 + n, whose low bits are those of n: adding it rounds to the nearest integer.
  const V magic = S::broadcast(12582912.f),
          shifted = x * S::broadcast(1.44269504088896341f) + magic;
  const V n = shifted - magic;
  const V r = x - n * S::broadcast(0.693359375f) - n * S::broadcast(-2.12194440e-4f);
  V p = S::broadcast(1.9875691500e-4f);
  p = p * r + S::broadcast(1.3981999507e-3f);
  p = p * r + S::broadcast(8.3334519073e-3f);
  p = p * r + S::broadcast(4.1665795894e-2f);
  p = p * r + S::broadcast(1.6666665459e-1f);
  p = p * r + S::broadcast(5.0000001201e-1f);
  U32 exponent;
  memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent << 23) + (127u << 23);
  Exponential e{p * r * r + r, {}};
  memcpy(&e.scale, &exponent, sizeof e.scale);
  return e;
}

// Within 2 ulp. Below -87 the result stays 1.6e-38; from 88.38 on it is infinite.
CHATTN_INLINE Simd<float>::V exp_vector(Simd<float>::V x) {
  const Exponential e = exponential(x);
  return (e.rest + Simd<float>::broadcast(1.f)) * e.scale;  // a product, so that NaN stays NaN
}

template <class V, class F>
CHATTN_INLINE V by_lane(V v, F&& f) {
  for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) v[i] = f(v[i]);
  return v;
}

template <class A>
CHATTN_INLINE typename Simd<A>::V exp_lanes(typename Simd<A>::V x) {
  if constexpr (std::is_same_v<A, float>) {
    return exp_vector(x);
  } else {
    return by_lane(x, [](A v) CHATTN_INLINE_LAMBDA { return exp(v); });
  }
}

// exp(x) for x <= 0, and 0 where exp_vector does not become smaller.
template <class A>
CHATTN_INLINE typename Simd<A>::V exp_to_zero(typename Simd<A>::V x) {
  const auto e = exp_lanes<A>(x);
  if constexpr (std::is_same_v<A, double>) return e;
  return x < A(-87) ? typename Simd<A>::V{} : e;
}

// erfc(x) for x >= 0, in float within 1.2e-7 of the result up to the rounding of x^2: Press et al.,
// Numerical Recipes in C, 2nd edition, section 6.2 (a fit by Chebyshev polynomials).
template <class A>
CHATTN_INLINE typename Simd<A>::V erfc_lanes(typename Simd<A>::V x) {
  if constexpr (std::is_same_v<A, double>) {
    return by_lane(x, [](A v) CHATTN_INLINE_LAMBDA { return erfc(v); });
  } else {
    constexpr float kFit[] = {-1.26551223f, 1.00002368f,  0.37409196f, 0.09678418f,  -0.18628806f,
                              0.27886807f,  -1.13520398f, 1.48851587f, -0.82215223f, 0.17087277f};
    const auto t = 1.f / (1.f + 0.5f * x);
    auto p = Simd<float>::broadcast(kFit[9]);
    for (int i = 8; i >= 0; --i) p = p * t + kFit[i];
    return t * exp_to_zero<float>(p - x * x);
  }
}

// exp(x) - 1 for x <= 0, without cancellation near 0.
template <class A>
CHATTN_INLINE typename Simd<A>::V expm1_lanes(typename Simd<A>::V x) {
  if constexpr (std::is_same_v<A, float>) {
    const Exponential e = exponential(x);
    return e.scale * e.rest + (e.scale - A(1));
  } else {
    return by_lane(x, [](A v) CHATTN_INLINE_LAMBDA { return expm1(v); });
  }
}

// The functions that activations are made of.
template <class A>
struct Elementary {
  using V = typename Simd<A>::V;

  static CHATTN_INLINE V clamp(V v, A low, A high) {  // keeps NaN
    return at_least(at_most(v, high), low);
  }
  static CHATTN_INLINE V sigmoid(V z) { return A(1) / (A(1) + exp_lanes<A>(-z)); }
  static CHATTN_INLINE V tanh(V z) {
    const V t = expm1_lanes<A>(A(-2) * (z < A(0) ? -z : z)), positive = -t / (t + A(2));
    return z < A(0) ? -positive : positive;
  }
  static CHATTN_INLINE V normal_cdf(V z) {
    const V tail = A(0.5) * erfc_lanes<A>((z < A(0) ? -z : z) * A(0.70710678118654752440));
    return z < A(0) ? tail : A(1) - tail;
  }
  // gelu_tanh is z * sigmoid(2 k (z + c z^3)): 1 + tanh(v) = 2 sigmoid(2 v), without cancellation.
  static CHATTN_INLINE V twice_gelu_inner(V z) {
    return A(2 * 0.79788456080286535588) * (z + A(0.044715) * z * z * z);
  }
  // t = tanh(softplus(z)) = w / (w + 2) with w = e^z (e^z + 2), and 1 - t. From z = 20 on, t is 1;
  // it is 0 where exp_vector does not become smaller.
  struct MishTanh {
    V t, rest;
  };
  static CHATTN_INLINE MishTanh mish_tanh(V z) {
    constexpr A kLeast = std::is_same_v<A, float> ? -87 : -745;
    const V e = exp_lanes<A>(z < A(20) ? z : Simd<A>::broadcast(A(20))), w = e * (e + A(2));
    return {z < kLeast ? V{} : w / (w + A(2)), z < A(20) ? A(2) / (w + A(2)) : V{}};
  }
};

// As activate() and activation_gradient(), up to rounding; hard swish's gradient at NaN is NaN, as
// torch's vector code has it.
template <Act f, class A>
CHATTN_INLINE typename Simd<A>::V activate_vector(typename Simd<A>::V z, A param) {
  using E = Elementary<A>;
  using V = typename Simd<A>::V;
  if constexpr (f == Act::relu) {
    return at_least(z, A(0));
  } else if constexpr (f == Act::relu6) {
    return E::clamp(z, 0, 6);
  } else if constexpr (f == Act::leaky_relu) {
    return z > A(0) ? z : z * param;
  } else if constexpr (f == Act::silu) {
    return z * E::sigmoid(z);
  } else if constexpr (f == Act::hard_swish) {
    return z * (E::clamp(z + A(3), 0, 6) * A(1. / 6));
  } else if constexpr (f == Act::gelu) {
    return z * E::normal_cdf(z);
  } else if constexpr (f == Act::gelu_tanh) {
    return z * E::sigmoid(E::twice_gelu_inner(z));
  } else if constexpr (f == Act::mish) {
    return z * E::mish_tanh(z).t;
  } else if constexpr (f == Act::elu) {
    return z > A(0) ? z : param * expm1_lanes<A>(z > A(0) ? V{} : z);
  } else if constexpr (f == Act::sigmoid) {
    return E::sigmoid(z);
  } else if constexpr (f == Act::hard_sigmoid) {
    return E::clamp(z + A(3), 0, 6) * A(1. / 6);
  } else if constexpr (f == Act::tanh) {
    return E::tanh(z);
  } else {
    static_assert(f == Act::identity);
    return z;
  }
}

template <Act f, class A>
CHATTN_INLINE typename Simd<A>::V activation_gradient_vector(typename Simd<A>::V z, A param,
                                                             typename Simd<A>::V g) {
  using E = Elementary<A>;
  using V = typename Simd<A>::V;
  if constexpr (f == Act::relu) {
    return z <= A(0) ? V{} : g;
  } else if constexpr (f == Act::relu6) {
    return (z > A(0)) & (z < A(6)) ? g : V{};
  } else if constexpr (f == Act::leaky_relu) {
    return z > A(0) ? g : g * param;
  } else if constexpr (f == Act::silu) {
    const V s = E::sigmoid(z);
    return g * (s * (A(1) + z * (A(1) - s)));
  } else if constexpr (f == Act::hard_swish) {
    return z <= A(-3) ? V{} : z >= A(3) ? g : g * (z * A(1. / 3) + A(0.5));
  } else if constexpr (f == Act::gelu) {
    const V pdf = A(0.39894228040143267794) * exp_to_zero<A>(A(-0.5) * z * z);
    return g * (E::normal_cdf(z) + z * pdf);
  } else if constexpr (f == Act::gelu_tanh) {
    const V v = E::twice_gelu_inner(z), s = E::sigmoid(v), rest = E::sigmoid(-v);
    const V slope = A(2 * 0.79788456080286535588) * (A(1) + A(3 * 0.044715) * z * z);
    return g * (s + z * s * rest * slope);
  } else if constexpr (f == Act::mish) {
    const auto [t, rest] = E::mish_tanh(z);
    return g * (t + z * rest * (A(1) + t) * E::sigmoid(z));
  } else if constexpr (f == Act::elu) {
    return z > A(0) ? g : g * (param * exp_lanes<A>(z > A(0) ? V{} : z));
  } else if constexpr (f == Act::sigmoid) {
    const V s = E::sigmoid(z);
    return g * (s * (A(1) - s));
  } else if constexpr (f == Act::hard_sigmoid) {
    return (z > A(-3)) & (z < A(3)) ? g * A(1. / 6) : V{};
  } else if constexpr (f == Act::tanh) {
    const V t = E::tanh(z);
    return g * (A(1) - t * t);
  } else {
    static_assert(f == Act::identity);
    return g;
  }
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

// With f known at run time. Called, lest every loop over a map hold all activations.
template <class A>
__attribute__((noinline)) typename Simd<A>::V activate_vector(Act f, typename Simd<A>::V z,
                                                              A param) {
  with_constant(f, [&](auto act) CHATTN_INLINE_LAMBDA { z = activate_vector<act()>(z, param); });
  return z;
}
template <class A>
__attribute__((noinline)) typename Simd<A>::V activation_gradient_vector(Act f,
                                                                         typename Simd<A>::V z,
                                                                         A param,
                                                                         typename Simd<A>::V g) {
  with_constant(f, [&](auto act) CHATTN_INLINE_LAMBDA {
    g = activation_gradient_vector<act()>(z, param, g);
  });
  return g;
}

}  // namespace chattn::CHATTN_ISA
