// Activations over arrays of accumulators. Compiled per instruction set: sigmoid, which every gate
// runs over (N, C), as vectors by hand; the others as the compiler can.
#pragma once
#include "engine/cpu/activations.h"

namespace chattn::CHATTN_ISA {

template <class A>
void activate_array(Act f, A param, A* values, index_t count) {
  if constexpr (std::is_same_v<A, float>) {
    if (f == Act::sigmoid) {
      using S = Simd<float>;
      for_vectors<S::kLanes>(count, [&](index_t i, index_t lanes) {
        const S::V z = S::load_some(values + i, lanes);
        S::store_some(values + i, activate_vector<Act::sigmoid>(z, param), lanes);
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
