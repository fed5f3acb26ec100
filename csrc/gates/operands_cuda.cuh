// What gates read and write besides the map: weights, and numbers left in parts by another launch.
#pragma once
#include "common/activation.h"
#include "common/types.h"
#include "engine/map.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Weights of a 16-bit map may be 16-bit too, or float32 (automatic mixed precision).
template <class T>
struct Weights {
  const void* p = nullptr;
  bool wide = false;
  CHATTN_DEVICE acc_t<T> at(int i) const {
    if (wide) return ld(static_cast<const acc_t<T>*>(p) + i);
    return to_acc(ld(static_cast<const T*>(p) + i));
  }

  // Many of them: body(load) with load(i) -> Raw, to be converted when it has come, by value().
  // The type is asked for once, so that the loads need not wait for one another.
  using Raw = std::conditional_t<sizeof(T) == 2, std::uint32_t, T>;
  template <class Body>
  CHATTN_DEVICE void with_loads(Body&& body) const {
    if constexpr (sizeof(T) == 2) {
      if (wide) {
        body([&](int i) { return ld(static_cast<const std::uint32_t*>(p) + i); });
      } else {
        body([&](int i) { return Raw{ld(static_cast<const T*>(p) + i).bits}; });
      }
    } else {
      body([&](int i) { return ld(static_cast<const T*>(p) + i); });
    }
  }
  CHATTN_DEVICE Raw raw(int i) const {
    Raw v{};
    with_loads([&](auto&& load) { v = load(i); });
    return v;
  }
  CHATTN_DEVICE acc_t<T> value(Raw raw) const {
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
  CHATTN_DEVICE A max(int i) const {
    A top = part(i, 0);
    for (int q = 1; q < count; ++q) top = nan_max(top, part(i, q));
    return top;
  }
};

// ---- operands of products (tile_product.cuh): elements of a stored row, rows of the tile, and where
// it begins
// A tile of a matrix of accumulators; after an activation if Activated.
template <class A, bool AlongK, bool Activated = false>
struct ValueTile {
  static constexpr bool kAlongK = AlongK;
  using Raw = A;
  const A* p;
  int width, rows, first;
  Act act = Act::identity;
  A param = 0;

  template <class Body>
  CHATTN_DEVICE void with_loads(Body&& body) const {
    body([&](int i) { return ld(p + i); });
  }
  template <int N>
  CHATTN_DEVICE void finish(const A (&raw)[N], A (&v)[N]) const {
    CHATTN_UNROLL
    for (int q = 0; q < N; ++q) v[q] = raw[q];
    if constexpr (Activated) activate_all(act, param, v);
  }
};

template <class T, bool AlongK>
struct WeightTile {
  static constexpr bool kAlongK = AlongK;
  using Raw = typename Weights<T>::Raw;
  Weights<T> w;
  int width, rows, first;

  template <class Body>
  CHATTN_DEVICE void with_loads(Body&& body) const {
    w.with_loads(body);
  }
  template <int N>
  CHATTN_DEVICE void finish(const Raw (&raw)[N], acc_t<T> (&v)[N]) const {
    CHATTN_UNROLL
    for (int q = 0; q < N; ++q) v[q] = w.value(raw[q]);
  }
};

}  // namespace chattn::cuda
