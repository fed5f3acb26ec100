// Planes of an NCHW map that stay on chip between the fold and the emit: one read of the map.
#pragma once
#include "engine/cuda/fast_div.h"
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Neighbouring planes in shared memory, as they lie in the map: its 16-byte words are words here.
template <class T, int V>
struct ResidentRun {
  Shared<T> words;
  index_t base = 0;  // of the first element, in the map
  int length = 0, skew = 0;

  // From byte_offset on: `planes` planes of by_hw.divisor elements, the map's `plane` first.
  CHATTN_DEVICE ResidentRun(int byte_offset, index_t plane, int planes, const FastDiv& by_hw)
      : words(shared<T>(byte_offset,
                        static_cast<int>((planes * index_t{by_hw.divisor} + V - 1) / V * V + V))) {
    const int hw = static_cast<int>(by_hw.divisor);
    base = plane * hw;
    length = planes * hw;
    skew = static_cast<int>(base % V);
  }
  CHATTN_DEVICE int count() const { return length == 0 ? 0 : (skew + length + V - 1) / V; }
  CHATTN_DEVICE bool whole(int e) const { return e >= 0 && e + V <= length; }

  // All words of a batch are asked for before the first of them is stored (see ReduceIo::walk), and
  // before them the elements of words that the planes share with their neighbours.
  CHATTN_DEVICE void load(const T* x) const {
    constexpr int kBatch = 4;
    const int tid = static_cast<int>(threadIdx.x);
    const int body = min(length, skew ? V - skew : 0), count = (length - body) / V;
    const int ends[2] = {tid, body + count * V + tid};
    const bool within[2] = {tid < body, ends[1] < length};
    T end[2];
    CHATTN_UNROLL
    for (int e = 0; e < 2; ++e) {
      if (within[e]) end[e] = ld(x + base + ends[e]);
    }
    int i = tid;
    CHATTN_UNROLL_BY(1)
    do {
      // Words, not Vec<T, V>, whose elements the compiler would take apart as soon as they come.
      Vec<unsigned, 4> word[kBatch];
      static_assert(sizeof(word[0]) == sizeof(Vec<T, V>));
      CHATTN_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        if (i + b * kThreads >= count) continue;
        const T* const from = x + base + body + (i + b * kThreads) * V;
        word[b] = load_vec<4>(reinterpret_cast<const unsigned*>(from));
      }
      CHATTN_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        if (i + b * kThreads >= count) continue;
        Vec<T, V> v;
        memcpy(&v, &word[b], sizeof v);
        words.template stv<V>(skew + body + (i + b * kThreads) * V, v);
      }
      i += kBatch * kThreads;
    } while (i < count);
    CHATTN_UNROLL
    for (int e = 0; e < 2; ++e) {
      if (within[e]) words.st(skew + ends[e], end[e]);
    }
  }
  CHATTN_DEVICE acc_t<T> at(int i) const { return to_acc(words.ld(skew + i)); }
  // One lane's share of a plane.
  CHATTN_DEVICE acc_t<T> lane_sum(int plane, int hw, int lane, int lanes) const {
    acc_t<T> sum = 0;
    for (int i = lane; i < hw; i += lanes) sum += at(plane * hw + i);
    return sum;
  }

  // Writes what `Element` makes of every position; numbers(plane, gate): those of a plane's gate.
  template <class Element, class Numbers>
  CHATTN_DEVICE void emit(T* y, const FastDiv& by_hw, Numbers&& numbers) const {
    using A = acc_t<T>;
    static_assert(Element::kInputs == 1 && Element::kOutputs == 1);
    const auto made = [&](int plane, A x) {
      A gate[Element::kNumbers];
      numbers(plane, gate);
      const A values[1] = {x};
      return from_acc<T>(Element::at(gate, 0, values));
    };
    const int hw = static_cast<int>(by_hw.divisor);
    for (int i = static_cast<int>(threadIdx.x); i < count(); i += kThreads) {
      const int e = i * V - skew;
      if (whole(e)) {
        const Vec<T, V> v = words.template ldv<V>(i * V);
        Vec<T, V> r;
        int plane = by_hw.quotient(e), position = e - plane * hw;
        CHATTN_UNROLL
        for (int k = 0; k < V; ++k) {
          r[k] = made(plane, to_acc(v[k]));
          if (++position == hw) {
            position = 0;
            ++plane;
          }
        }
        store_vec(y + base + e, r);
      } else {
        for (int q = e < 0 ? 0 : e; q < e + V && q < length; ++q)
          st(y + base + q, made(by_hw.quotient(q), at(q)));
      }
    }
  }
};

}  // namespace chattn::cuda
