// The emits of tails that the apply pass has no elements for: any activations, rows that allow no
// accesses of 16 bytes, tiles that would begin within a byte of the mask. A thread has 16 bytes of
// memory, wherever planes and samples end.
#pragma once
#include "blocks/tail/elements.cuh"
#include "engine/cuda/mask.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Where an element of memory is: in a run of positions or channels, and that in its sample.
struct ElementPlace {
  int length, runs;
  int in_run, run, n;

  CHATTN_DEVICE ElementPlace(int length_, int runs_, index_t element)
      : length(length_), runs(runs_) {
    const index_t of_all = element / length, sample = of_all / runs;
    in_run = static_cast<int>(element - of_all * length);
    run = static_cast<int>(of_all - sample * runs);
    n = static_cast<int>(sample);
  }
  CHATTN_DEVICE void next() {
    if (++in_run < length) return;
    in_run = 0;
    if (++run < runs) return;
    run = 0;
    ++n;
  }
};

// Rows of accumulators: by (n, c) or by c, null ones are `otherwise`.
template <class A>
struct NumberRow {
  const A* p = nullptr;
  bool per_sample = false;
  A otherwise = 0;

  CHATTN_DEVICE A at(int n, int c, int c_count) const {
    return p == nullptr ? otherwise : ld(p + (per_sample ? n * c_count : 0) + c);
  }
  // Of V neighbouring channels.
  template <int V>
  CHATTN_DEVICE void several(int n, int c, int c_count, A (&to)[V]) const {
    constexpr int kWord = V * sizeof(A) <= 16 ? V : 16 / static_cast<int>(sizeof(A));
    CHATTN_UNROLL
    for (int k = 0; k < V; k += kWord) {
      Vec<A, kWord> word;
      if (p != nullptr) word = load_vec<kWord>(p + (per_sample ? n * c_count : 0) + c + k);
      CHATTN_UNROLL
      for (int e = 0; e < kWord; ++e) to[k + e] = p == nullptr ? otherwise : word[e];
    }
  }
};

template <class T, class Formula>
struct AnyArgs {
  using A = acc_t<T>;
  const T* in[Formula::kInputs];
  T* out[Formula::kOutputs];
  NumberRow<A> rows[Formula::kNumbers];
  Formula formula;
  index_t elements;
  int c, hw;
  bool channels_last;
};

template <class T, class Formula>
CHATTN_KERNEL(kThreads, 2)
tail_any(AnyArgs<T, Formula> a) {
  using A = acc_t<T>;
  constexpr int V = 16 / static_cast<int>(sizeof(T));
  const index_t first = (static_cast<index_t>(blockIdx.x) * kThreads + threadIdx.x) * index_t{V};
  const index_t left = a.elements - first;
  const int count = left < 0 ? 0 : left < V ? static_cast<int>(left) : V;
  Vec<T, V> in[Formula::kInputs] = {}, out[Formula::kOutputs];
  CHATTN_UNROLL
  for (int q = 0; q < Formula::kInputs; ++q) {
    if (a.in[q] == nullptr) continue;
    if (count == V) {
      in[q] = load_vec<V>(a.in[q] + first);
    } else {
      CHATTN_UNROLL
      for (int k = 0; k < V; ++k)
        if (k < count) in[q][k] = ld(a.in[q] + first + k);
    }
  }
  unsigned bits = 0;
  if (Formula::kMask == Mask::read && count > 0) bits = load_bits<V>(a.formula.mask, first);

  A numbers[Formula::kNumbers][V] = {};
  ElementPlace at(a.channels_last ? a.c : a.hw, a.channels_last ? a.hw : a.c, first);
  if (count == V && a.channels_last && a.c % V == 0) {
    CHATTN_UNROLL
    for (int q = 0; q < Formula::kNumbers; ++q)
      a.rows[q].template several<V>(at.n, at.in_run, a.c, numbers[q]);
  } else {
    CHATTN_UNROLL
    for (int k = 0; k < V; ++k) {
      const bool same = k > 0 && !a.channels_last && at.in_run > 0;
      CHATTN_UNROLL
      for (int q = 0; q < Formula::kNumbers; ++q) {
        if (same)
          numbers[q][k] = numbers[q][k > 0 ? k - 1 : 0];
        else if (k < count)
          numbers[q][k] = a.rows[q].at(at.n, a.channels_last ? at.in_run : at.run, a.c);
      }
      at.next();
    }
  }
  CHATTN_UNROLL
  for (int k = 0; k < V; ++k) {
    A n[Formula::kNumbers], values[Formula::kInputs], results[Formula::kOutputs];
    CHATTN_UNROLL
    for (int q = 0; q < Formula::kNumbers; ++q) n[q] = numbers[q][k];
    CHATTN_UNROLL
    for (int q = 0; q < Formula::kInputs; ++q) values[q] = to_acc(in[q][k]);
    bool bit = (bits >> k & 1) != 0;
    a.formula.at(n, values, bit, results);
    if constexpr (Formula::kMask == Mask::written) bits |= (bit && k < count ? 1u : 0u) << k;
    CHATTN_UNROLL
    for (int o = 0; o < Formula::kOutputs; ++o) out[o][k] = from_acc<T>(results[o]);
  }
  CHATTN_UNROLL
  for (int o = 0; o < Formula::kOutputs; ++o) {
    if (a.out[o] == nullptr) continue;
    if (count == V) {
      store_vec(a.out[o] + first, out[o]);
    } else {
      CHATTN_UNROLL
      for (int k = 0; k < V; ++k)
        if (k < count) st(a.out[o] + first + k, out[o][k]);
    }
  }
  if constexpr (Formula::kMask == Mask::written)  // whose byte may end behind the map
    if ((first & ~index_t{7}) < a.elements) store_bits<V>(a.formula.mask, first, bits);
}

// ---- formulas: engine/tail.h
template <class A>
struct AnyTail {
  static constexpr int kInputs = 2, kOutputs = 1, kNumbers = 3;
  static constexpr Mask kMask = Mask::written;
  enum Number { kScale, kShift, kGate };
  Activations<A> f;
  std::uint8_t* mask = nullptr;

  CHATTN_DEVICE void at(const A (&n)[3], const A (&in)[2], bool& bit, A (&out)[1]) const {
    const A z = n[kGate] * f.inner.at(n[kScale] * in[0] + n[kShift]).value + in[1];
    bit = f.act.is_on(z);
    out[0] = f.act.at(z).value;
  }
};

template <class A>
struct AnyTailGradient {
  static constexpr int kInputs = 3, kOutputs = 2, kNumbers = 7;
  static constexpr Mask kMask = Mask::read;
  enum Number { kScale, kShift, kMean, kGate, kPooled, kConstant, kSlope };
  Activations<A> f;
  A each;  // 1 / HW
  const std::uint8_t* mask = nullptr;

  CHATTN_DEVICE void at(const A (&n)[7], const A (&in)[3], bool bit, A (&out)[2]) const {
    const ValueAndSlope<A> w = f.inner.at(n[kScale] * in[1] + n[kShift]);
    const A g =
        f.known ? f.act.pass(bit, in[0]) : f.act.at(n[kGate] * w.value + in[2]).gradient(in[0]);
    const A lost = n[kSlope] == A(0) ? A(0) : n[kSlope] * (in[1] - n[kMean]);
    out[0] = n[kScale] * w.gradient(n[kGate] * g + n[kPooled] * each) - n[kConstant] - lost;
    out[1] = g;
  }
};

}  // namespace chattn::cuda
