// The MLP gate on a GPU: products of (samples x channels) with weights that all samples share.
//
//   forward    squeeze | product: h = W1 p + b1 | apply: tile of s = gate(W2 act(h) + b2), y = s x
//   backward   dot     | product: dh = act'(h) W2^T dz
//                      | apply: tile of dp = W1^T dh, dx = s g + dp/HW; the weights' gradients
//
// The squeeze leaves the parts of a split plane to the product, which adds them up on the fly.
//
// A gate of one layer has no product: finish adds up the parts, and p takes the place of the
// hidden values, dz that of their gradients, W2 that of W1.
#pragma once
#include "blocks/se/params.h"
#include "engine/cuda/operands.cuh"
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Sizes of the gate's matrices, all below 2^31 elements, so that 32 bits index them.
template <class A>
struct MlpShape {
  int n = 0, c = 0, rd = 0;
  Act act = Act::relu, gate = Act::sigmoid;
  A param = 0, hw = 1;
};

// ---- sums that are only finished
// The pooled value of plane i.
template <class A>
struct PooledPlane {
  Partials<A> total;
  A scale;  // 1 / HW
  A* pooled;
  CHATTN_DEVICE void finish(int i) const { st(pooled + i, total.sum(i) * scale); }
};

// The gradient in front of the gate function.
template <class A>
struct GateGradPlane {
  Partials<A> dot;
  Act gate;
  const A *scale, *dgate;  // dgate: null, or the gradient of a gate that was returned
  A* dz;
  CHATTN_DEVICE void finish(int i) const {
    A v = dot.sum(i);
    if (dgate != nullptr) v += ld(dgate + i);
    st(dz + i, gate_gradient(gate, ld(scale + i), v));
  }
};

// ---- rows of the product (engine/cuda/product_launch.cuh)
// The gradient in front of the gate function, from the parts of sum(g*x); kept for the weights'.
template <class A>
struct GateGradRows {
  template <int V>
  struct Given {
    Vec<A, V> scale, dgate;
  };
  Partials<A> dot;
  int n, k;
  Act gate;
  const A *scale, *dgate;  // dgate: null, or the gradient of a gate that was returned
  A* dz;
  int first = 0;
  CHATTN_DEVICE bool has(int m) const { return first + m < n; }
  CHATTN_DEVICE int parts() const { return dot.count; }
  template <int V>
  CHATTN_DEVICE Vec<A, V> part(int m, int c, int q) const {
    return load_vec<V>(dot.p + q * dot.stride + (first + m) * k + c);
  }
  template <int V>
  CHATTN_DEVICE Given<V> given(int m, int c) const {
    Given<V> r;
    r.scale = load_vec<V>(scale + (first + m) * k + c);
    r.dgate = dgate == nullptr ? Vec<A, V>{} : load_vec<V>(dgate + (first + m) * k + c);
    return r;
  }
  template <int V>
  CHATTN_DEVICE Vec<A, V> finish(int m, int c, Vec<A, V> v, const Given<V>& given,
                                 bool store) const {
    CHATTN_UNROLL
    for (int e = 0; e < V; ++e) v[e] = gate_gradient(gate, given.scale[e], v[e] + given.dgate[e]);
    if (store) store_vec(dz + (first + m) * k + c, v);
    return v;
  }
};

// ---- kernel
// Grid: the planes, one per thread.
template <class Plane>
CHATTN_KERNEL(kThreads)
finish(index_t planes, Plane plane) {
  const index_t i = static_cast<index_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < planes) plane.finish(static_cast<int>(i));
}

}  // namespace chattn::cuda
