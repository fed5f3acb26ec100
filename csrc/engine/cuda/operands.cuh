// What gates read and write besides the map: weights, and numbers left in parts by another launch.
#pragma once
#include "common/activation.h"
#include "common/types.h"
#include "engine/map.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Weights of a 16-bit map may be 16-bit too, or float32 (automatic mixed precision): wide.
template <class T>
bool is_wide(DType weights) {
  return sizeof(T) == 2 && weights == DType::f32;
}

template <class T>
struct Weights {
  const void* p = nullptr;
  bool wide = false;
  CHATTN_DEVICE acc_t<T> at(int i) const {
    if (wide) return ld(static_cast<const acc_t<T>*>(p) + i);
    return to_acc(ld(static_cast<const T*>(p) + i));
  }

  // body(S()), S the type they have.
  template <class Body>
  CHATTN_DEVICE void with_type(Body&& body) const {
    if constexpr (sizeof(T) == 2) {
      if (wide) return body(acc_t<T>());
    }
    body(T());
  }

  // at() in two steps: what is between them does not wait for the load.
  using Raw = std::conditional_t<sizeof(T) == 2, std::uint32_t, T>;
  CHATTN_DEVICE Raw asked(int i) const {
    if constexpr (sizeof(T) == 2) {
      if (wide) return ld(static_cast<const std::uint32_t*>(p) + i);
      return ld(static_cast<const T*>(p) + i).bits;
    } else {
      return ld(static_cast<const T*>(p) + i);
    }
  }
  CHATTN_DEVICE acc_t<T> come(Raw raw) const {
    if constexpr (sizeof(T) == 2) {
      return wide ? bit_cast<float>(raw) : to_acc(T{static_cast<std::uint16_t>(raw)});
    } else {
      return raw;
    }
  }
};

template <class T>
struct WeightsOut {
  void* p = nullptr;
  bool wide = false;
  CHATTN_DEVICE void put(int i, acc_t<T> v) const {
    if (wide) {
      st(static_cast<acc_t<T>*>(p) + i, v);
    } else {
      st(static_cast<T*>(p) + i, from_acc<T>(v));
    }
  }
};

// Numbers that were left as `count` partial results each.
template <class A>
struct Partials {
  const A* p = nullptr;
  int count = 1;
  index_t stride = 0;
  CHATTN_DEVICE A part(int i, int q) const { return ld(p + q * stride + i); }
  // In the parts' order; eight of them are in flight together.
  CHATTN_DEVICE A sum(int i) const {
    A total = part(i, 0);
    CHATTN_UNROLL_BY(1)
    for (int first = 1; first < count; first += 8) {
      A more[8];
      CHATTN_UNROLL
      for (int q = 0; q < 8; ++q) more[q] = first + q < count ? part(i, first + q) : A(0);
      CHATTN_UNROLL
      for (int q = 0; q < 8; ++q) total += more[q];
    }
    return total;
  }
};

// ---- operands of products (tile_product.cuh)
// A matrix of accumulators; after an activation if Activated.
template <class A, bool AlongK, bool Activated = false>
struct ValueTile {
  static constexpr bool kAlongK = AlongK;
  const A* p;
  int width, rows, first;
  Act act = Act::identity;
  A param = 0;

  template <class Body>
  CHATTN_DEVICE void with_type(Body&& body) const {
    body(A());
  }
  template <int N>
  CHATTN_DEVICE void finish(A (&v)[N]) const {
    if constexpr (Activated) activate_all(act, param, v);
  }
};

template <class T, bool AlongK>
struct WeightTile : Weights<T> {
  static constexpr bool kAlongK = AlongK;
  int width, rows, first;

  template <int N>
  CHATTN_DEVICE void finish(acc_t<T> (&)[N]) const {}
};

}  // namespace chattn::cuda
