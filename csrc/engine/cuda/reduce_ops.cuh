// What a reduction reduces: a squeeze (sum), or the gate's gradient (sum of g*x).
//
// An Op turns the inputs' values at a position into kStaged numbers, and folds those into kOutputs.
// A Reference is what the fold needs to know of a plane: load(memory, plane,
// channel, C). Inputs from
// kBranches on may be slices of a larger map (kBranches < 0: none).
#pragma once
#include "engine/map.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

template <class A>
struct Nothing {
  CHATTN_DEVICE static Nothing load(const A*, index_t, index_t, index_t) { return {}; }
};
template <class A, int M>
struct PrologueOfPlane {  // of M branches, in (2, M, C): scale and shift
  A scale[M], shift[M];
  CHATTN_DEVICE static PrologueOfPlane load(const A* numbers, index_t, index_t c, index_t c_count) {
    PrologueOfPlane r;
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) {
      r.scale[m] = ld(numbers + m * c_count + c);
      r.shift[m] = ld(numbers + (M + m) * c_count + c);
    }
    return r;
  }
};

template <class T, int M = 1>
struct SumOp {  // sum over M inputs
  using A = acc_t<T>;
  static constexpr int kInputs = M, kStaged = 1, kOutputs = 1, kBranches = M > 1 ? 0 : -1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[kInputs], A (&out)[kStaged]) {
    out[0] = in[0];
    CHATTN_UNROLL
    for (int m = 1; m < M; ++m) out[0] += in[m];
  }
  CHATTN_DEVICE static A first(int) { return A(0); }
  CHATTN_DEVICE static void fold(A (&s)[kOutputs], const A (&v)[kStaged], Reference) {
    s[0] += v[0];
  }
  CHATTN_DEVICE static A merge(int, A a, A b) { return a + b; }
};

template <class T, int M>
struct PrologueSumOp {  // sum over M inputs, each through its prologue
  using A = acc_t<T>;
  static constexpr int kInputs = M, kStaged = M, kOutputs = 1, kBranches = 0;
  using Reference = PrologueOfPlane<A, M>;
  CHATTN_DEVICE static void stage(const A (&in)[M], A (&out)[M]) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) out[m] = in[m];
  }
  CHATTN_DEVICE static A first(int) { return A(0); }
  CHATTN_DEVICE static void fold(A (&s)[1], const A (&v)[M], const Reference& r) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) s[0] += nan_max(A(0), r.scale[m] * v[m] + r.shift[m]);
  }
  CHATTN_DEVICE static A merge(int, A a, A b) { return a + b; }
};

template <class T>
struct DotOp {  // sum of g*x
  using A = acc_t<T>;
  static constexpr int kInputs = 2, kStaged = 1, kOutputs = 1, kBranches = -1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[2], A (&out)[1]) { out[0] = in[0] * in[1]; }
  CHATTN_DEVICE static A first(int) { return A(0); }
  CHATTN_DEVICE static void fold(A (&s)[1], const A (&v)[1], Reference) { s[0] += v[0]; }
  CHATTN_DEVICE static A merge(int, A a, A b) { return a + b; }
};

template <class T, int M>
struct DotsOp {  // sums of g*x_m for M branches
  using A = acc_t<T>;
  static constexpr int kInputs = M + 1, kStaged = M, kOutputs = M, kBranches = 1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[kInputs], A (&out)[M]) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) out[m] = in[0] * in[m + 1];
  }
  CHATTN_DEVICE static A first(int) { return A(0); }
  CHATTN_DEVICE static void fold(A (&s)[M], const A (&v)[M], Reference) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) s[m] += v[m];
  }
  CHATTN_DEVICE static A merge(int, A a, A b) { return a + b; }
};

}  // namespace chattn::cuda
