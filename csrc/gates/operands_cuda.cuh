// What gates read and write besides the map: weights, and numbers left in parts by another launch.
#pragma once
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

}  // namespace chattn::cuda
