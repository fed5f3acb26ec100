// Element functions: what happens to one position's values. The passes that call them know how a
// map is walked, and nothing of what it is walked for.
#pragma once
#include "common/activation.h"
#include "engine/cuda/plan.h"
#include "engine/map.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Any of the list: called, since as a part of every place where a kernel asks for it, it would be
// most of the binary.
template <class A>
CHATTN_DEVICE_CALLED A called_activation(Act f, A z, A param) {
  return activate(f, z, param);
}

// ---- folds (reduce.cuh): maps to numbers per plane
// A fold turns the values of kInputs maps at a position into kStaged numbers, and adds those to a
// state of kOutputs numbers that starts as zeros; states are merged as a whole. A Reference is what
// it needs to know of a plane: load(memory, plane, channel, C), or of a fold that is told more by
// its launch reference_of(plane, channel, C). Inputs from kBranches on may be slices of a larger
// map (kBranches < 0: none).

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

// What folds and emits may have beside this. kMask: a bit per position, in the order of memory, at
// `mask` (null: none); stage() and at() take it, to read or to write. kOptional: null maps are not
// there, and read as zeros. kWays: that there are kernels for.
enum class Mask { none, read, written };
struct Usual {
  static constexpr Mask kMask = Mask::none;
  static constexpr bool kOptional = false;
  static constexpr Ways kWays = {};
};

template <class T, int Outputs>
struct Sums : Usual {  // a state of sums
  using A = acc_t<T>;
  static constexpr int kOutputs = Outputs;
  CHATTN_DEVICE static void merge(A (&s)[Outputs], const A (&more)[Outputs]) {
    CHATTN_UNROLL
    for (int o = 0; o < Outputs; ++o) s[o] += more[o];
  }
};

template <class T, int M = 1>
struct SumOp : Sums<T, 1> {  // sum over M inputs
  using A = acc_t<T>;
  static constexpr int kInputs = M, kStaged = 1, kBranches = M > 1 ? 0 : -1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[M], A (&out)[1]) {
    out[0] = in[0];
    CHATTN_UNROLL
    for (int m = 1; m < M; ++m) out[0] += in[m];
  }
  CHATTN_DEVICE static void fold(A (&s)[1], const A (&v)[1], Reference) { s[0] += v[0]; }
};

template <class T, int M>
struct PrologueSumOp : Sums<T, 1> {  // sum over M inputs, each relu(scale*x + shift)
  using A = acc_t<T>;
  static constexpr int kInputs = M, kStaged = M, kBranches = 0;
  using Reference = PrologueOfPlane<A, M>;
  CHATTN_DEVICE static void stage(const A (&in)[M], A (&out)[M]) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) out[m] = in[m];
  }
  CHATTN_DEVICE static void fold(A (&s)[1], const A (&v)[M], const Reference& r) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) s[0] += nan_max(A(0), r.scale[m] * v[m] + r.shift[m]);
  }
};

template <class T, int M>
struct ActivatedSumOp : PrologueSumOp<T, M> {  // the same with another activation than ReLU
  using A = acc_t<T>;
  Act act = Act::identity;
  A act_param = 0;

  CHATTN_DEVICE void fold(A (&s)[1], const A (&v)[M], const PrologueOfPlane<A, M>& r) const {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m)
      s[0] += called_activation(act, r.scale[m] * v[m] + r.shift[m], act_param);
  }
};

template <class T, int M = 1, bool Slices = false>
struct DotOp : Sums<T, M> {  // sums of g*x_m for M branches
  using A = acc_t<T>;
  static constexpr int kInputs = M + 1, kStaged = M, kBranches = Slices ? 1 : -1;
  using Reference = Nothing<A>;
  CHATTN_DEVICE static void stage(const A (&in)[M + 1], A (&out)[M]) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) out[m] = in[0] * in[m + 1];
  }
  CHATTN_DEVICE static void fold(A (&s)[M], const A (&v)[M], Reference) {
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) s[m] += v[m];
  }
};

// ---- emits (apply.cuh): maps and kNumbers per gate to maps
// at(numbers of the gate, output o, the inputs' values); with a mask at(numbers, values, bit,
// outputs). One that does either of two things has choose(body), which calls the body with one that
// does it. kSliceIn, kSliceOut: inputs and outputs may be slices of a larger map. kBatch: vectors
// that a thread asks for before it uses the first of them: at least four loads in flight, fewer
// vectors where each takes several.
template <int Inputs, int Outputs, int Numbers>
struct Emit : Usual {
  static constexpr int kInputs = Inputs, kOutputs = Outputs, kNumbers = Numbers;
  static constexpr int kBatch = Inputs > 1 ? 2 : 4;
  static constexpr bool kSliceIn = false, kSliceOut = false;
};

struct Scale : Emit<1, 1, 1> {  // y = gate*x
  template <class A>
  CHATTN_DEVICE static A at(const A (&gate)[1], int, const A (&x)[1]) {
    return gate[0] * x[0];
  }
};

template <int M = 1, bool Slices = false>
struct Spread : Emit<1, M, M + 1> {  // dx_m = gate_m*g + shift
  static constexpr bool kSliceOut = Slices;
  template <class A>
  CHATTN_DEVICE static A at(const A (&gate)[M + 1], int m, const A (&g)[1]) {
    return gate[m] * g[0] + gate[M];
  }
};

template <int M>
struct Select : Emit<M, 1, M> {  // y = sum_m gate_m*x_m
  static constexpr bool kSliceIn = M > 1;
  template <class A>
  CHATTN_DEVICE static A at(const A (&gate)[M], int, const A (&x)[M]) {
    A r = gate[0] * x[0];
    CHATTN_UNROLL
    for (int m = 1; m < M; ++m) r += gate[m] * x[m];
    return r;
  }
};

template <int M>
struct PrologueSelect : Emit<M, 1, 2 * M> {  // y = sum_m relu(scale_m*x_m + shift_m)
  static constexpr bool kSliceIn = M > 1;
  template <class A>
  CHATTN_DEVICE static A at(const A (&gate)[2 * M], int, const A (&x)[M]) {
    A r = A(0);
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m) r += nan_max(A(0), gate[m] * x[m] + gate[M + m]);
    return r;
  }
};

template <class A, int M>
struct ActivatedSelect : Emit<M, 1, 3 * M> {  // y = sum_m gate_m*act(scale_m*x_m + shift_m)
  static constexpr bool kSliceIn = M > 1;
  Act act = Act::identity;
  A act_param = 0;

  CHATTN_DEVICE A at(const A (&gate)[3 * M], int, const A (&x)[M]) const {
    A r = A(0);
    CHATTN_UNROLL
    for (int m = 0; m < M; ++m)
      r += gate[m] * called_activation(act, gate[M + m] * x[m] + gate[2 * M + m], act_param);
    return r;
  }
};

}  // namespace chattn::cuda
