// Activations and gates: one formula for the CUDA kernels, the CPU kernels and the tests.
#pragma once
#include <math.h>

#include "common/macros.h"

namespace chattn {

// The order is part of the operator schema: chattn_cuda/activations.py lists the same codes.
enum class Act : int {
  identity = 0,
  relu = 1,
  relu6 = 2,
  leaky_relu = 3,  // param: negative slope
  silu = 4,
  hard_swish = 5,
  gelu = 6,  // erf
  gelu_tanh = 7,
  mish = 8,
  elu = 9,  // param: alpha
  sigmoid = 10,
  hard_sigmoid = 11,
  tanh = 12,
};
constexpr int kActCount = 13;

namespace detail {

template <class A>
CHATTN_HD A clamp(A v, A low, A high) {  // keeps NaN, as torch does
  return v < low ? low : (v > high ? high : v);
}

template <class A>
CHATTN_HD A sigmoid(A v) {
  return A(1) / (A(1) + exp(-v));
}

template <class A>
CHATTN_HD A softplus(A v) {
  return v > A(20) ? v : log1p(exp(v));
}

// gelu_tanh: tanh(k (z + c z^3))
template <class A>
CHATTN_HD A gelu_inner(A z) {
  return A(0.79788456080286535588) * (z + A(0.044715) * z * z * z);
}

}  // namespace detail

template <class A>
CHATTN_HD A activate(Act f, A z, A param) {
  switch (f) {
    case Act::relu:
      return z < A(0) ? A(0) : z;
    case Act::relu6:
      return detail::clamp(z, A(0), A(6));
    case Act::leaky_relu:
      return z > A(0) ? z : z * param;
    case Act::silu:
      return z * detail::sigmoid(z);
    case Act::hard_swish:
      return z * detail::clamp(z + A(3), A(0), A(6)) / A(6);
    case Act::gelu:
      return A(0.5) * z * (A(1) + erf(z * A(0.70710678118654752440)));
    case Act::gelu_tanh:
      return A(0.5) * z * (A(1) + tanh(detail::gelu_inner(z)));
    case Act::mish:
      return z * tanh(detail::softplus(z));
    case Act::elu:
      return z > A(0) ? z : param * expm1(z);
    case Act::sigmoid:
      return detail::sigmoid(z);
    case Act::hard_sigmoid:
      return detail::clamp(z + A(3), A(0), A(6)) / A(6);
    case Act::tanh:
      return tanh(z);
    case Act::identity:
      break;
  }
  return z;
}

// The gradient g of a value, times the derivative at its pre-activation z. At a kink the derivative
// is torch's. Where a branch has the derivative 0 the result is 0 whatever g is, as in torch: an
// infinite gradient must not become NaN there.
template <class A>
CHATTN_HD A activation_gradient(Act f, A z, A param, A g) {
  switch (f) {
    case Act::relu:
      return z <= A(0) ? A(0) : g;
    case Act::relu6:
      return z > A(0) && z < A(6) ? g : A(0);
    case Act::leaky_relu:
      return z > A(0) ? g : g * param;
    case Act::silu: {
      const A s = detail::sigmoid(z);
      return g * (s * (A(1) + z * (A(1) - s)));
    }
    case Act::hard_swish:
      return z <= A(-3) ? A(0) : (z < A(3) ? g * (z / A(3) + A(0.5)) : g);
    case Act::gelu: {
      const A cdf = A(0.5) * (A(1) + erf(z * A(0.70710678118654752440)));
      return g * (cdf + z * A(0.39894228040143267794) * exp(A(-0.5) * z * z));
    }
    case Act::gelu_tanh: {
      const A t = tanh(detail::gelu_inner(z));
      const A inner = A(0.79788456080286535588) * (A(1) + A(3 * 0.044715) * z * z);
      return g * (A(0.5) * (A(1) + t) + A(0.5) * z * (A(1) - t * t) * inner);
    }
    case Act::mish: {
      const A t = tanh(detail::softplus(z));
      return g * (t + z * (A(1) - t * t) * detail::sigmoid(z));
    }
    case Act::elu:
      return z > A(0) ? g : g * (param * exp(z));
    case Act::sigmoid: {
      const A s = detail::sigmoid(z);
      return g * (s * (A(1) - s));
    }
    case Act::hard_sigmoid:
      return z > A(-3) && z < A(3) ? g / A(6) : A(0);
    case Act::tanh: {
      const A t = tanh(z);
      return g * (A(1) - t * t);
    }
    case Act::identity:
      break;
  }
  return g;
}

// Functions that can be gates: their derivative follows from their value, so only that is saved.
constexpr bool is_gate(Act f) {
  return f == Act::identity || f == Act::relu || f == Act::sigmoid || f == Act::hard_sigmoid ||
         f == Act::tanh;
}

template <Act f>
constexpr bool kIsGate = is_gate(f);

// activate() for an array, with one branch on f. kGates: f is a gate.
template <bool kGates = false, int Code = 0, int N, class A>
CHATTN_HD void activate_all(Act f, A param, A (&v)[N]) {
  constexpr Act kAct{Code};
  if constexpr (!kGates || kIsGate<kAct>) {
    if (f == kAct) {
      for (int i = 0; i < N; ++i) v[i] = activate(kAct, v[i], param);
      return;
    }
  }
  if constexpr (Code + 1 < kActCount) activate_all<kGates, Code + 1>(f, param, v);
}

template <class A>
CHATTN_HD A gate_gradient(Act f, A s, A g) {
  switch (f) {
    case Act::relu:
      return s <= A(0) ? A(0) : g;
    case Act::sigmoid:
      return g * (s * (A(1) - s));
    case Act::hard_sigmoid:
      return s > A(0) && s < A(1) ? g / A(6) : A(0);
    case Act::tanh:
      return g * (A(1) - s * s);
    default:
      return g;
  }
}

}  // namespace chattn
