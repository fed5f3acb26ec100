// What happens to one position's values in a tail (engine/tail.h): its folds and emits.
#pragma once
#include <limits>

#include "blocks/tail/plan.h"
#include "engine/cuda/elements.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// ---- activations
template <class A>
struct ValueAndSlope {
  A value, slope;

  // The gradient in front of it, of that behind; 0 where the slope is, whatever g is.
  CHATTN_DEVICE A gradient(A g) const { return slope == A(0) ? A(0) : slope * g; }
};

template <Act f, class A>
CHATTN_DEVICE ValueAndSlope<A> sloped(A z, A param) {
  return {activate(f, z, param), activation_gradient(f, z, param, A(1))};
}

// A function of its own: the code of all for every element of a vector would be most of the
// library. Those that tails of networks have; plan.h refuses others.
template <class A>
CHATTN_DEVICE_CALLED ValueAndSlope<A> called_with_slope(Act f, A z, A param) {
  switch (f) {
    case Act::relu:
      return sloped<Act::relu>(z, param);
    case Act::relu6:
      return sloped<Act::relu6>(z, param);
    case Act::leaky_relu:
      return sloped<Act::leaky_relu>(z, param);
    case Act::silu:
      return sloped<Act::silu>(z, param);
    case Act::hard_swish:
      return sloped<Act::hard_swish>(z, param);
    case Act::gelu:
      return sloped<Act::gelu>(z, param);
    default:
      return {z, A(1)};
  }
}

// What the launch has chosen. Those of straight lines (identity, relu, relu6, leaky_relu) are a few
// instructions.
template <class A>
struct Activation {
  Act f = Act::identity;
  bool flat = false;  // below 0
  A param = 0, slope = 1;
  A top = std::numeric_limits<A>::quiet_NaN();  // NaN: none

  Activation() = default;
  Activation(Act act, double p) : f(act), param(static_cast<A>(p)) {
    flat = f == Act::relu || f == Act::relu6;
    if (f == Act::leaky_relu) slope = param;
    if (f == Act::relu6) top = 6;
  }

  CHATTN_DEVICE ValueAndSlope<A> at(A z) const { return called_with_slope(f, z, param); }

  // ---- of straight lines alone
  CHATTN_DEVICE A line(A z) const {
    const A bent = z < A(0) ? (flat ? A(0) : z * slope) : z;
    return bent > top ? top : bent;
  }
  // Whether the derivative is 1, and what a gradient becomes then and otherwise.
  CHATTN_DEVICE bool is_on(A z) const {
    return (f == Act::relu ? !(z <= A(0)) : z > A(0)) && !(z >= top);
  }
  CHATTN_DEVICE A pass(bool on, A g) const { return on ? g : flat ? A(0) : g * slope; }
};

// Both of a tail.
template <class A>
struct Activations {
  Activation<A> inner, act;
  // The derivative of `act` needs no value: a mask tells it, or it is 1.
  bool known = false;

  Activations() = default;
  Activations(const TailFunctions& functions, bool masked)
      : inner(functions.inner, functions.inner_param),
        act(functions.act, functions.act_param),
        known(masked || functions.act == Act::identity) {}
};

// ---- folds
// Moments are a count, a first value, the sum of the differences from it and that of their squares.
template <class A>
CHATTN_DEVICE void merge_moments(A (&s)[4], const A (&more)[4]) {
  if (s[0] == A(0)) s[1] = more[1];
  const A d = more[0] == A(0) ? A(0) : more[1] - s[1];  // from one first value to the other
  s[0] += more[0];
  s[2] += more[2] + more[0] * d;
  s[3] += more[3] + (A(2) * more[2] + more[0] * d) * d;
}

// Each thread's own first value keeps the sums' precision however large the mean is, and costs no
// read. With numbers, of inner(scale*x + shift).
template <class T>
struct MomentsOp : Usual {
  using A = acc_t<T>;
  static constexpr int kInputs = 1, kStaged = 1, kOutputs = 4, kBranches = -1;
  static constexpr Ways kWays = sizeof(A) == 8 ? kFloat64 : kTwoSums;
  struct Reference {
    A scale, shift;
  };
  Activation<A> inner;
  const A* numbers = nullptr;

  CHATTN_DEVICE Reference reference_of(index_t, index_t c, index_t c_count) const {
    if (numbers == nullptr) return {A(1), A(0)};
    return {ld(numbers + kTailScale * c_count + c), ld(numbers + kTailShift * c_count + c)};
  }
  CHATTN_DEVICE static void stage(const A (&in)[1], A (&out)[1]) { out[0] = in[0]; }
  CHATTN_DEVICE void fold(A (&s)[4], const A (&v)[1], const Reference& r) const {
    const A x = numbers == nullptr ? v[0] : inner.at(r.scale * v[0] + r.shift).value;
    if (s[0] == A(0)) s[1] = x;
    const A d = x - s[1];
    s[0] += A(1);
    s[2] += d;
    s[3] += d * d;
  }
  CHATTN_DEVICE static void merge(A (&s)[4], const A (&more)[4]) { merge_moments(s, more); }
};

// What the sums of a plane are computed with.
template <class A>
struct TailOfPlane {
  A scale, shift, gate, mean;
};

template <class A, bool Inner>
struct TailSumsState {
  Activations<A> f;
  const std::uint8_t* mask = nullptr;
  const A *numbers = nullptr, *gate = nullptr;

  // Without what nobody asks for: every thread loads its own.
  CHATTN_DEVICE TailOfPlane<A> reference_of(index_t plane, index_t c, index_t c_count) const {
    TailOfPlane<A> r{A(1), A(0), A(1), ld(numbers + kTailMean * c_count + c)};
    if (Inner || !f.known) {
      r.scale = ld(numbers + kTailScale * c_count + c);
      r.shift = ld(numbers + kTailShift * c_count + c);
    }
    if (!f.known && gate != nullptr) r.gate = ld(gate + plane);
    return r;
  }
};

// Of dy and x, where `act` is of straight lines, nothing is in front of the gate and the residual
// is not asked: g and g*(x - mean).
template <class T>
struct TailDotOp : Sums<T, 2>, TailSumsState<acc_t<T>, false> {
  using A = acc_t<T>;
  static constexpr int kInputs = 2, kStaged = 2, kBranches = -1;
  static constexpr Ways kWays = kTwoSums;
  static constexpr Mask kMask = Mask::read;
  using Reference = TailOfPlane<A>;

  CHATTN_DEVICE void stage(const A (&in)[2], bool bit, A (&out)[2]) const {
    out[0] = this->f.known ? this->f.act.pass(bit, in[0]) : in[0];
    out[1] = in[1];
  }
  CHATTN_DEVICE void fold(A (&s)[2], const A (&v)[2], const Reference& r) const {
    const bool on = this->f.known || this->f.act.is_on(r.gate * (r.scale * v[1] + r.shift));
    const A g = on ? v[0] : this->f.act.pass(false, v[0]);
    s[0] += g;
    s[1] += g * (v[1] - r.mean);
  }
};

// Of dy, x and perhaps the residual: all five sums of a tail.
template <class T>
struct TailSumsOp : Sums<T, 5>, TailSumsState<acc_t<T>, true> {
  using A = acc_t<T>;
  static constexpr int kInputs = 3, kStaged = 3, kBranches = -1;
  static constexpr Ways kWays = sizeof(A) == 8 ? kFloat64 : kFiveSums;
  static constexpr Mask kMask = Mask::read;
  static constexpr bool kOptional = true;
  using Reference = TailOfPlane<A>;

  CHATTN_DEVICE void stage(const A (&in)[3], bool bit, A (&out)[3]) const {
    out[0] = this->f.known ? this->f.act.pass(bit, in[0]) : in[0];
    out[1] = in[1];
    out[2] = in[2];
  }
  CHATTN_DEVICE void fold(A (&s)[5], const A (&v)[3], const Reference& r) const {
    const A d = v[1] - r.mean;
    const ValueAndSlope<A> w = this->f.inner.at(r.scale * v[1] + r.shift);
    const A g = this->f.known ? v[0] : this->f.act.at(r.gate * w.value + v[2]).gradient(v[0]);
    const A before = w.gradient(g);
    s[0] += g * w.value;
    s[1] += before;
    s[2] += before * d;
    s[3] += w.slope;
    s[4] += w.slope * d;
  }
};

// ---- emits
// y of x and perhaps the residual, as TailDotOp.
template <class A>
struct TailElement : Emit<2, 1, 2> {
  static constexpr Mask kMask = Mask::written;
  static constexpr bool kOptional = true;
  static constexpr Ways kWays = kEmits;
  Activation<A> act;
  std::uint8_t* mask = nullptr;

  enum Number { kScale, kShift };
  CHATTN_DEVICE void at(const A (&n)[2], const A (&in)[2], bool& bit, A (&out)[1]) const {
    const A z = n[kScale] * in[0] + n[kShift] + in[1];
    bit = act.is_on(z);
    out[0] = act.line(z);
  }
};

// dx and the residual's gradient, of dy and x, as TailDotOp.
template <class A>
struct TailGradientElement : Emit<2, 2, 5> {
  static constexpr Mask kMask = Mask::read;
  static constexpr bool kOptional = true;
  static constexpr Ways kWays = kEmits;
  Activations<A> f;
  const std::uint8_t* mask = nullptr;

  enum Number { kScale, kShift, kEach, kSlope, kMean };  // kEach: what every position gets
  CHATTN_DEVICE void at(const A (&n)[5], const A (&in)[2], bool bit, A (&out)[2]) const {
    const bool on = f.known ? bit : f.act.is_on(n[kScale] * in[1] + n[kShift]);
    const A g = f.act.pass(on, in[0]);
    // By running statistics the slope is 0, whatever x is.
    const A lost = n[kSlope] == A(0) ? A(0) : n[kSlope] * (in[1] - n[kMean]);
    out[0] = n[kScale] * g + n[kEach] - lost;
    out[1] = g;
  }
};

}  // namespace chattn::cuda
