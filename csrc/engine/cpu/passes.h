// The passes over the map, for one sample and a range of its channels. Compiled per instruction
// set.
//
// M branches share a pass (a selective kernel has several): the squeeze sums over them, the rescale
// weighs them, the dot multiplies each with g, the gradient writes all. `gate` has M rows of C.
// kPrologue: the branches are relu(scale*x + shift), see Branches.
#pragma once
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

// The prologue of a branch for one vector of channels, or for one channel in every lane.
template <class T, bool kPrologue>
struct Prologue {
  using V = typename Simd<T>::V;
  V scale, shift;

  CHATTN_INLINE V operator()(V v, index_t count) const {
    using S = Simd<T>;
    return S::first(S::max(V{}, v * scale + shift), count);
  }
};
template <class T>
struct Prologue<T, false> {
  using V = typename Simd<T>::V;
  CHATTN_INLINE V operator()(V v, index_t) const { return v; }
};

// Branch m's prologue: scale and shift are rows of s.c.
template <class T, bool kPrologue>
struct Prologues {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  const acc_t<T>*scale, *shift;
  index_t row;

  Prologues(const MapShape& s, const Branches& x)
      : scale(static_cast<const acc_t<T>*>(x.prologue)),
        shift(kPrologue ? scale + x.count * s.c : nullptr),
        row(s.c) {}

  CHATTN_INLINE Prologue<T, kPrologue> of_channel(int m, index_t c) const {
    if constexpr (kPrologue) {
      return {S::broadcast(scale[m * row + c]), S::broadcast(shift[m * row + c])};
    } else {
      return {};
    }
  }
  CHATTN_INLINE Prologue<T, kPrologue> of_channels(int m, index_t c, index_t count) const {
    if constexpr (kPrologue) {
      return {SA::load_some(scale + m * row + c, count), SA::load_some(shift + m * row + c, count)};
    } else {
      return {};
    }
  }
};

// ---- (N, C, HW): a channel is a contiguous plane

// How many of `count` numbers to add before their sum joins the total: about as many as there are
// such sums, so that the error of a long sum grows with the root of its length.
CHATTN_INLINE index_t part_of_sum(index_t count, index_t least) {
  while (least * least < count) least *= 2;
  return least;
}

// Sum over [0, length) of value(offset), a vector of lanes, lane by lane; four chains hide the
// adder's latency. Long sums are made of parts, whose number the error grows with.
template <class S, class Value>
CHATTN_INLINE typename S::V sum_of(index_t length, Value&& value) {
  constexpr index_t kL = S::kLanes;
  const index_t part = part_of_sum(length / kL, 256) * kL;
  typename S::V total{};
  index_t i = 0;
  do {
    const index_t end = length - i < part ? length : i + part;
    typename S::V s0{}, s1{}, s2{}, s3{};
    for (; i + 4 * kL <= end; i += 4 * kL) {
      s0 += value(i, kL);
      s1 += value(i + kL, kL);
      s2 += value(i + 2 * kL, kL);
      s3 += value(i + 3 * kL, kL);
    }
    for (; i + kL <= end; i += kL) s0 += value(i, kL);
    if (i < end) s1 += value(i, end - i);
    i = end;
    total += (s0 + s1) + (s2 + s3);
  } while (i < length);
  return total;
}

// out[r][c] = sum over [0, hw) of value(r, c, offset, count) at the offsets of plane c in its
// sample, for c in [c0, c1) and r in [0, R). `add`: to what is there.
template <class T, int R, class Value>
CHATTN_INLINE void plane_sums(const MapShape& s, index_t c0, index_t c1, acc_t<T>* out, bool add,
                              Value&& value) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  constexpr index_t kL = S::kLanes;
  for (index_t c = c0; c < c1; c += kL) {
    const index_t planes = c1 - c < kL ? c1 - c : kL;
    for (int r = 0; r < R; ++r) {
      typename S::V parts[kL];
      for (index_t p = 0; p < kL; ++p) {
        const index_t offset = (c + p) * s.hw;
        parts[p] = sum_of<S>(p < planes ? s.hw : 0, [&](index_t i, index_t count) {
          return value(r, c + p, offset + i, count);
        });
      }
      acc_t<T>* o = out + r * s.c + c;
      const auto sums = S::sums(parts);
      SA::store_some(o, add ? SA::load_some(o, planes) + sums : sums, planes);
    }
  }
}

template <class T>
CHATTN_INLINE acc_t<T> plane_max(const T* x, index_t hw) {
  using S = Simd<T>;
  const acc_t<T> first = to_acc(x[0]);
  auto m = S::broadcast(first);
  for_vectors<S::kLanes>(
      hw, [&](index_t i, index_t count) { m = S::max(m, S::load_some(x + i, count, first)); });
  return S::max_lane(m);
}

template <class T>
CHATTN_INLINE acc_t<T> plane_count(const T* x, index_t hw, acc_t<T> value) {
  index_t count = 0;
  for (index_t i = 0; i < hw; ++i) count += to_acc(x[i]) == value;
  return static_cast<acc_t<T>>(count);
}

// out[i] = value(i) for a run of elements, streamed where the run starts on a vector boundary.
template <class T, class Value>
CHATTN_INLINE void write_run(T* out, index_t length, bool stream, Value&& value) {
  using S = Simd<T>;
  constexpr int kL = S::kLanes;
  index_t i = 0;
  if (stream && reinterpret_cast<std::uintptr_t>(out) % (kL * sizeof(T)) == 0) {
    for (; i + kL <= length; i += kL) S::stream(out + i, value(i, static_cast<index_t>(kL)));
  } else {
    for (; i + kL <= length; i += kL) S::store(out + i, value(i, static_cast<index_t>(kL)));
  }
  if (i < length) S::store_partial(out + i, value(i, length - i), static_cast<int>(length - i));
}

// ---- (N, HW, C): a position is a contiguous row of channels

// out[r][c] = sum of value(r, position, channel, count) over positions, for channels in [c0, c1)
// and r in [0, R).
//
// Rows are read from end to end. One at a time, so that the prefetcher of a page follows one stream
// (two streams in a page cost up to half of the bandwidth), unless rows are longer than a page:
// then each starts with misses, which four at a time overlap. Partial sums of a chunk of rows stay
// in the first-level cache; the error grows with the number of chunks and not of positions.
template <class T, int R, class Value>
CHATTN_INLINE void column_sums(const MapShape& s, index_t c0, index_t c1, acc_t<T>* out, bool add,
                               Value&& value) {
  using SA = Simd<acc_t<T>>;
  using V = typename SA::V;
  constexpr index_t kL = SA::kLanes, kVectors = 64, kPageBytes = 4096;
  // Sums of sums of sums: of a chunk of rows, of a span of chunks, of all.
  constexpr index_t kChunk = 64;
  const index_t span = kChunk * part_of_sum(s.hw / kChunk, 8);
  const bool long_rows = s.c * static_cast<index_t>(sizeof(T)) > kPageBytes;
  V sums[R][kVectors], totals[R][kVectors];
  for (index_t b0 = c0; b0 < c1; b0 += kVectors * kL) {
    const index_t width = c1 - b0 < kVectors * kL ? c1 - b0 : kVectors * kL;
    for (index_t p0 = 0; p0 < s.hw; p0 += kChunk) {
      const index_t p1 = p0 + kChunk < s.hw ? p0 + kChunk : s.hw;
      for (auto& row : sums)
        for (V& sum : row) sum = V{};
      index_t p = p0;
      for (; long_rows && p + 4 <= p1; p += 4)
        for_vectors<kL>(width, [&](index_t i, index_t count) {
          const index_t c = b0 + i;
          for (int r = 0; r < R; ++r)
            sums[r][i / kL] += (value(r, p, c, count) + value(r, p + 1, c, count)) +
                               (value(r, p + 2, c, count) + value(r, p + 3, c, count));
        });
      for (; p < p1; ++p)
        for_vectors<kL>(width, [&](index_t i, index_t count) {
          for (int r = 0; r < R; ++r) sums[r][i / kL] += value(r, p, b0 + i, count);
        });
      const bool starts = p0 % span == 0, ends = p1 % span == 0 || p1 == s.hw;
      for_vectors<kL>(width, [&](index_t i, index_t count) {
        for (int r = 0; r < R; ++r) {
          V& total = totals[r][i / kL];
          total = starts ? sums[r][i / kL] : total + sums[r][i / kL];
          acc_t<T>* o = out + r * s.c + b0 + i;
          const bool there = add || p1 > span;
          if (ends) SA::store_some(o, there ? SA::load_some(o, count) + total : total, count);
        }
      });
    }
  }
}

// ---- the table's functions

// peak[c] = the maximum of a sample's channel.
template <class T>
void maxima(const MapShape& s, const T* x, index_t c0, index_t c1, acc_t<T>* peak) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  if (!s.channels_last) {
    for (index_t c = c0; c < c1; ++c) peak[c] = plane_max(x + c * s.hw, s.hw);
    return;
  }
  for (index_t p = 0; p < s.hw; ++p) {
    const T* row = x + p * s.c;
    for_vectors<S::kLanes>(c1 - c0, [&](index_t i, index_t count) {
      auto v = S::load_some(row + c0 + i, count);
      if (p > 0) v = S::max(SA::load_some(peak + c0 + i, count), v);
      SA::store_some(peak + c0 + i, v, count);
    });
  }
}

// Branch after branch: one stream at a time.
template <class T, bool kPrologue>
void squeeze(const MapShape& s, const Branches& x, index_t n, index_t c0, index_t c1, acc_t<T>* sum,
             acc_t<T>* peak) {
  using S = Simd<T>;
  const Prologues<T, kPrologue> prologue(s, x);
  for (int m = 0; m < x.count; ++m) {
    const Sample<const T*, 1> u(s, x, n, m);
    const T* base = u.base[0];
    if (!s.channels_last) {
      plane_sums<T, 1>(s, c0, c1, sum, m > 0, [&](int, index_t c, index_t offset, index_t count) {
        return prologue.of_channel(m, c)(S::load_some(base + offset, count), count);
      });
    } else {
      column_sums<T, 1>(s, c0, c1, sum, m > 0, [&](int, index_t p, index_t c, index_t count) {
        const auto v = S::load_some(base + p * u.pitch + c, count);
        return prologue.of_channels(m, c, count)(v, count);
      });
    }
  }
  if (peak) maxima(s, static_cast<const T*>(x.at[0]) + n * s.c * s.hw, c0, c1, peak);
}

template <class T, int M>
void dot(const MapShape& s, const T* g, const Sample<const T*, M>& u, index_t n, index_t c0,
         index_t c1, acc_t<T>* out, const acc_t<T>* peak, acc_t<T>* count_out) {
  using S = Simd<T>;
  g += n * s.c * s.hw;
  const T* x = u.base[0];
  if (!s.channels_last) {
    plane_sums<T, M>(s, c0, c1, out, false, [&](int m, index_t, index_t offset, index_t count) {
      return S::load_some(g + offset, count) * S::load_some(u.base[m] + offset, count);
    });
    if (!peak) return;
    for (index_t c = c0; c < c1; ++c) count_out[c] = plane_count(x + c * s.hw, s.hw, peak[c]);
    return;
  }
  column_sums<T, M>(s, c0, c1, out, false, [&](int m, index_t p, index_t c, index_t count) {
    return S::load_some(g + p * s.c + c, count) * S::load_some(u.base[m] + p * u.pitch + c, count);
  });
  if (!peak) return;
  for (index_t c = c0; c < c1; ++c) count_out[c] = 0;
  for (index_t p = 0; p < s.hw; ++p)
    for (index_t c = c0; c < c1; ++c) count_out[c] += to_acc(x[p * s.c + c]) == peak[c];
}

template <class T, int M, bool kPrologue>
void rescale(const MapShape& s, const Branches& x, index_t n, index_t c0, index_t c1,
             const acc_t<T>* gate, T* y, bool stream) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  const Sample<const T*, M> u(s, x, n);
  const Prologues<T, kPrologue> prologue(s, x);
  y += n * s.c * s.hw;
  if (!s.channels_last) {
    for (index_t c = c0; c < c1; ++c) {
      const index_t offset = c * s.hw;
      typename S::V g[M];
      for (int m = 0; m < M; ++m) g[m] = S::broadcast(gate[m * s.c + c]);
      write_run(y + offset, s.hw, stream, [&](index_t i, index_t count) {
        const auto read = [&](int m) CHATTN_INLINE_LAMBDA {
          return prologue.of_channel(m, c)(S::load_some(u.base[m] + offset + i, count), count);
        };
        auto v = g[0] * read(0);
        for (int m = 1; m < M; ++m) v += g[m] * read(m);
        return v;
      });
    }
    return;
  }
  for (index_t p = 0; p < s.hw; ++p) {
    const index_t offset = p * u.pitch + c0;
    write_run(y + p * s.c + c0, c1 - c0, stream, [&](index_t i, index_t count) {
      const auto weighed = [&](int m) CHATTN_INLINE_LAMBDA {
        const auto v = S::load_some(u.base[m] + offset + i, count);
        return SA::load_some(gate + m * s.c + c0 + i, count) *
               prologue.of_channels(m, c0 + i, count)(v, count);
      };
      auto v = weighed(0);
      for (int m = 1; m < M; ++m) v += weighed(m);
      return v;
    });
  }
}

template <class T, int M>
void gradient(const MapShape& s, const T* g, const T* x, index_t n, index_t c0, index_t c1,
              const acc_t<T>* gate, const acc_t<T>* dmean, const acc_t<T>* peak,
              const acc_t<T>* dpeak, const Sample<T*, M>& dx, bool stream) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  using V = typename S::V;
  const V zero{};
  g += n * s.c * s.hw;
  if (peak) x += n * s.c * s.hw;
  if (!s.channels_last) {
    for (index_t c = c0; c < c1; ++c) {
      const index_t offset = c * s.hw;
      const V mean = S::broadcast(dmean[c]);
      for (int m = 0; m < M; ++m) {
        const V scale = S::broadcast(gate[m * s.c + c]);
        if (!peak) {
          write_run(dx.base[m] + offset, s.hw, stream, [&](index_t i, index_t count) {
            return scale * S::load_some(g + offset + i, count) + mean;
          });
          continue;
        }
        const V top = S::broadcast(peak[c]), share = S::broadcast(dpeak[c]);
        write_run(dx.base[m] + offset, s.hw, stream, [&](index_t i, index_t count) {
          const V hit = S::load_some(x + offset + i, count) == top ? share : zero;
          return scale * S::load_some(g + offset + i, count) + (mean + hit);
        });
      }
    }
    return;
  }
  for (index_t p = 0; p < s.hw; ++p) {
    const index_t offset = p * s.c + c0;
    for (int m = 0; m < M; ++m)
      write_run(dx.base[m] + p * dx.pitch + c0, c1 - c0, stream, [&](index_t i, index_t count) {
        V v = SA::load_some(gate + m * s.c + c0 + i, count) * S::load_some(g + offset + i, count) +
              SA::load_some(dmean + c0 + i, count);
        if (peak) {
          const V top = SA::load_some(peak + c0 + i, count);
          v += S::load_some(x + offset + i, count) == top ? SA::load_some(dpeak + c0 + i, count)
                                                          : zero;
        }
        return v;
      });
  }
}

}  // namespace chattn::CHATTN_ISA
