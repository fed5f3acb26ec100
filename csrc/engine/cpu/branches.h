// The branches that a pass reads, and their prologues. Compiled per instruction set.
#pragma once
#include "engine/cpu/activations.h"
#include "engine/cpu/simd.h"
#include "engine/map.h"

namespace chattn::CHATTN_ISA {

// One sample of M branches, from the `first` on: branch m starts at base[m], and in channels_last
// its positions are `pitch` elements apart.
template <class P, int M>
struct Sample {
  P base[M];
  index_t pitch;

  template <class Void>
  Sample(const MapShape& s, const BranchesOf<Void>& x, index_t n, int first = 0)
      : pitch(s.c + x.gap) {
    const index_t start = s.channels_last ? n * s.hw * pitch : n * (s.c * s.hw + x.gap);
    for (int m = 0; m < M; ++m) base[m] = static_cast<P>(x.at[first + m]) + start;
  }
};

enum class With { nothing, relu, activation };

// The prologue of a branch for one vector of channels, or for one channel in every lane.
template <class T, With kPrologue>
struct Prologue {
  using V = typename Simd<T>::V;
  V scale, shift;
  Act act;
  acc_t<T> param;

  CHATTN_INLINE V operator()(V v, index_t count) const {
    using S = Simd<T>;
    v = v * scale + shift;
    if constexpr (kPrologue == With::relu) {
      v = S::max(V{}, v);
    } else {
      v = activate_vector<acc_t<T>>(act, v, param);
    }
    return S::first(v, count);
  }
};
template <class T>
struct Prologue<T, With::nothing> {
  using V = typename Simd<T>::V;
  CHATTN_INLINE V operator()(V v, index_t) const { return v; }
};

// Branch m's prologue: scale and shift are rows of s.c.
template <class T, With kPrologue>
struct Prologues {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  static constexpr bool kThere = kPrologue != With::nothing;
  const acc_t<T>*scale, *shift;
  index_t row;
  Act act;
  acc_t<T> param;

  Prologues(const MapShape& s, const Branches& x)
      : scale(static_cast<const acc_t<T>*>(x.prologue)),
        shift(kThere ? scale + x.count * s.c : nullptr),
        row(s.c),
        act(x.act),
        param(static_cast<acc_t<T>>(x.act_param)) {}

  CHATTN_INLINE Prologue<T, kPrologue> of_channel(int m, index_t c) const {
    if constexpr (kThere) {
      return {S::broadcast(scale[m * row + c]), S::broadcast(shift[m * row + c]), act, param};
    } else {
      return {};
    }
  }
  CHATTN_INLINE Prologue<T, kPrologue> of_channels(int m, index_t c, index_t count) const {
    if constexpr (kThere) {
      const index_t i = m * row + c;
      return {SA::load_some(scale + i, count), SA::load_some(shift + i, count), act, param};
    } else {
      return {};
    }
  }
};

}  // namespace chattn::CHATTN_ISA
