// The passes over the map, each over a region of it. Compiled per instruction set.
//
// M branches share a pass (a selective kernel has several): the squeeze sums over them, the rescale
// weighs them, the dot multiplies each with g, the gradient writes all. `gate` has M rows of C.
// kPrologue: the branches are act(scale*x + shift), see Branches.
#pragma once
#include <algorithm>

#include "engine/cpu/branches.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/simd.h"

namespace chattn::CHATTN_ISA {

using cpu::Region;

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

// out[i] = value(i) for a run of elements, streamed where it begins and ends on vector boundaries:
// a line of the cache that is written both ways waits for the memory.
// kAnywhere: value(i) may be asked for any i, and again: what is left at the end is then a whole
// vector that overlaps the one before, as stores of a part take as long as several of a whole.
template <bool kAnywhere = true, class T, class Value>
CHATTN_INLINE void write_run(T* out, index_t length, bool stream, Value&& value) {
  using S = Simd<T>;
  constexpr int kL = S::kLanes;
  index_t i = 0;
  if (stream && length % kL == 0 && reinterpret_cast<std::uintptr_t>(out) % (kL * sizeof(T)) == 0) {
    for (; i + kL <= length; i += kL) S::stream(out + i, value(i, static_cast<index_t>(kL)));
  } else {
    for (; i + kL <= length; i += kL) S::store(out + i, value(i, static_cast<index_t>(kL)));
  }
  if (i == length) return;
  if (kAnywhere && length > kL) {
    i = length - kL;
    S::store(out + i, value(i, static_cast<index_t>(kL)));
    return;
  }
  S::store_partial(out + i, value(i, length - i), static_cast<int>(length - i));
}

// ---- (N, HW, C): a position is a contiguous row of channels

// Several positions are one row where the channels of one are few, or end within a vector.
constexpr index_t kLongestRow = 2048;

// How many positions make a row.
template <class T>
CHATTN_INLINE index_t positions_per_row(const MapShape& s, bool dense) {
  constexpr index_t kL = Simd<T>::kLanes, kShortest = 16 * kL;
  if (!dense || s.c > cpu::kWholeRow || s.hw == 1) return 1;
  const index_t twos = s.c & -s.c;  // the largest power of two in C
  index_t fold = twos < kL ? kL / twos : 1;
  while (s.c * fold < kShortest) fold *= 2;
  return s.c * fold <= kLongestRow ? fold : 1;
}

// A row of C values `fold` times, one behind the other.
template <class A>
CHATTN_INLINE const A* repeat_row(A* out, const A* row, index_t c, index_t fold) {
  for (index_t i = 0; i < fold; ++i)
    memcpy(out + i * c, row, static_cast<std::size_t>(c) * sizeof(A));
  return out;
}

// Accumulators per channel, R rows of them, repeated for every position of a row.
template <class A, int R>
struct Repeated {
  const A* first;
  index_t stride;
  alignas(kVectorBytes) A copy[R * kLongestRow];

  CHATTN_INLINE Repeated(const A* values, index_t c, index_t fold)
      : first(fold > 1 ? copy : values), stride(fold > 1 ? c * fold : c) {
    if (first != copy) return;
    for (index_t r = 0; r < R; ++r) repeat_row(copy + r * stride, values + r * c, c, fold);
  }
};

// out[r][i] = sum of term r of terms(m, position, i, count), a tile of R, over the rows that start
// at positions p0, p0 + fold, ... before p1 and over `parts` maps m, for columns [c0, c1).
//
// Rows are read from end to end. One at a time, so that the prefetcher of a page follows one stream
// (two streams in a page cost up to half of the bandwidth), unless a row is a page or more:
// then each starts with misses, which four at a time overlap. Partial sums of a chunk of rows stay
// in the first-level cache; the error grows with the number of chunks and not of positions.
template <class T, int R, class Terms>
CHATTN_INLINE void row_sums(const MapShape& s, index_t fold, index_t p0, index_t p1, index_t c0,
                            index_t c1, int parts, acc_t<T>* out, index_t stride, bool add,
                            Terms&& terms) {
  using SA = Simd<acc_t<T>>;
  using V = typename SA::V;
  constexpr index_t kL = SA::kLanes, kVectors = 64, kChunk = 64, kPageBytes = 4096;
  const bool long_rows = s.c * static_cast<index_t>(sizeof(T)) >= kPageBytes;
  const index_t chunk = kChunk * fold;
  V sums[kVectors][R], totals[kVectors][R];  // rows of 4 KiB would share places in the cache
  for (index_t b0 = c0; b0 < c1; b0 += kVectors * kL) {
    const index_t width = c1 - b0 < kVectors * kL ? c1 - b0 : kVectors * kL;
    for (index_t q0 = p0; q0 < p1; q0 += chunk) {
      const index_t q1 = q0 + chunk < p1 ? q0 + chunk : p1;
      for (auto& vector : sums)
        for (V& sum : vector) sum = V{};
      index_t p = q0;
      for (; long_rows && p + 4 <= q1; p += 4)
        for (int m = 0; m < parts; ++m)
          for_vectors<kL>(width, [&](index_t i, index_t count) CHATTN_INLINE_LAMBDA {
            const index_t c = b0 + i;
            auto four = (terms(m, p, c, count) + terms(m, p + 1, c, count)) +
                        (terms(m, p + 2, c, count) + terms(m, p + 3, c, count));
            four.each([&](index_t r, V v) CHATTN_INLINE_LAMBDA { sums[i / kL][r] += v; });
          });
      for (; p < q1; p += fold) {
        // The last row may have fewer positions.
        const index_t end = (q1 - p) * s.c - b0;
        const index_t there = fold == 1 || end > width ? width : end;
        for (int m = 0; m < parts; ++m)
          for_vectors<kL>(there, [&](index_t i, index_t count) CHATTN_INLINE_LAMBDA {
            auto one = terms(m, p, b0 + i, count);
            one.each([&](index_t r, V v) CHATTN_INLINE_LAMBDA { sums[i / kL][r] += v; });
          });
      }
      for_vectors<kL>(width, [&](index_t i, index_t count) {
        for (int r = 0; r < R; ++r) {
          V& total = totals[i / kL][r];
          total = q0 == p0 ? sums[i / kL][r] : total + sums[i / kL][r];
          acc_t<T>* o = out + r * stride + b0 + i;
          if (q1 == p1) SA::store_some(o, add ? SA::load_some(o, count) + total : total, count);
        }
      });
    }
  }
}

// out[r][c] = sum of term r of terms(m, position, channel, count) over the region's positions and
// `parts` maps m: sums of chunks, of spans, of all. `one_map`: rows may be of several positions.
// Several maps never fold, because those that lie in one tensor have gaps, and sums must be the
// same.
template <class T, int R, class Terms>
CHATTN_INLINE void column_sums(const MapShape& s, const Region& at, bool one_map, int parts,
                               acc_t<T>* out, Terms&& terms) {
  const index_t fold = positions_per_row<T>(s, one_map);
  acc_t<T> row[R * kLongestRow];
  if (fold > 1) std::fill_n(row, R * s.c * fold, acc_t<T>(0));  // GCC cannot see that it is written
  for (index_t p0 = at.p0; p0 < at.p1; p0 += at.span) {
    const index_t p1 = p0 + at.span < at.p1 ? p0 + at.span : at.p1;
    if (fold == 1) {
      row_sums<T, R>(s, 1, p0, p1, at.c0, at.c1, parts, out, s.c, p0 > at.p0, terms);
      continue;
    }
    const index_t width = s.c * fold;
    row_sums<T, R>(s, fold, p0, p1, 0, width, parts, row, width, false, terms);
    for (int r = 0; r < R; ++r)
      for (index_t c = 0; c < s.c; ++c) {
        acc_t<T> total = row[r * width + c];
        for (index_t i = c + s.c; i < width; i += s.c) total += row[r * width + i];
        out[r * s.c + c] = p0 > at.p0 ? out[r * s.c + c] + total : total;
      }
  }
}

// ---- the table's functions

template <class T, With kPrologue>
void squeeze(const MapShape& s, const Branches& x, const Region& at, acc_t<T>* sum) {
  using S = Simd<T>;
  using V = typename S::V;
  const Prologues<T, kPrologue> prologue(s, x);
  const T* base[kMaxBranches];
  index_t pitch = s.c;
  for (int m = 0; m < x.count; ++m) {
    const Sample<const T*, 1> u(s, x, at.n, m);
    base[m] = u.base[0];
    pitch = u.pitch;
  }
  if (!s.channels_last) {
    // Branch after branch: one stream at a time.
    for (int m = 0; m < x.count; ++m)
      plane_sums<T, 1>(
          s, at.c0, at.c1, sum, m > 0, [&](int, index_t c, index_t offset, index_t count) {
            return prologue.of_channel(m, c)(S::load_some(base[m] + offset, count), count);
          });
  } else {
    const bool one_map = !prologue.kThere && x.count == 1;
    column_sums<T, 1>(s, at, one_map, x.count, sum,
                      [&](int m, index_t p, index_t c, index_t count) {
                        const auto v = S::load_some(base[m] + p * pitch + c, count);
                        return tile_of<V, 1>(prologue.of_channels(m, c, count)(v, count));
                      });
  }
}

template <class T, int M>
void dot(const MapShape& s, const T* g, const Sample<const T*, M>& u, const Region& at,
         acc_t<T>* out) {
  using S = Simd<T>;
  g += at.n * s.c * s.hw;
  if (!s.channels_last) {
    plane_sums<T, M>(
        s, at.c0, at.c1, out, false, [&](int m, index_t, index_t offset, index_t count) {
          return S::load_some(g + offset, count) * S::load_some(u.base[m] + offset, count);
        });
    return;
  }
  column_sums<T, M>(s, at, M == 1, 1, out, [&](int, index_t p, index_t c, index_t count) {
    const auto dy = S::load_some(g + p * s.c + c, count);
    Tile<typename S::V, M> products;
    products.each([&](index_t m, typename S::V& v) CHATTN_INLINE_LAMBDA {
      v = dy * S::load_some(u.base[m] + p * u.pitch + c, count);
    });
    return products;
  });
}

template <class T, int M, With kPrologue>
void rescale(const MapShape& s, const Branches& x, const Region& at, const acc_t<T>* gate, T* y,
             bool stream) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  const Sample<const T*, M> u(s, x, at.n);
  const Prologues<T, kPrologue> prologue(s, x);
  y += at.n * s.c * s.hw;
  if (!s.channels_last) {
    for (index_t c = at.c0; c < at.c1; ++c) {
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
  const index_t fold = positions_per_row<T>(s, !prologue.kThere && u.pitch == s.c);
  const Repeated<acc_t<T>, M> gates(gate, s.c, fold);
  for (index_t p = at.p0; p < at.p1; p += fold) {
    const index_t offset = p * u.pitch + at.c0;
    const index_t width = fold == 1 ? at.c1 - at.c0 : s.c * (fold < at.p1 - p ? fold : at.p1 - p);
    write_run(y + p * s.c + at.c0, width, stream, [&](index_t i, index_t count) {
      const auto weighed = [&](int m) CHATTN_INLINE_LAMBDA {
        const auto v = S::load_some(u.base[m] + offset + i, count);
        return SA::load_some(gates.first + m * gates.stride + at.c0 + i, count) *
               prologue.of_channels(m, at.c0 + i, count)(v, count);
      };
      auto v = weighed(0);
      for (int m = 1; m < M; ++m) v += weighed(m);
      return v;
    });
  }
}

template <class T, int M>
void gradient(const MapShape& s, const T* g, const Region& at, const acc_t<T>* gate,
              const acc_t<T>* dmean, const Sample<T*, M>& dx, bool stream) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  using V = typename S::V;
  using A = acc_t<T>;
  g += at.n * s.c * s.hw;
  if (!s.channels_last) {
    for (index_t c = at.c0; c < at.c1; ++c) {
      const index_t offset = c * s.hw;
      const V mean = S::broadcast(dmean[c]);
      for (int m = 0; m < M; ++m) {
        const V scale = S::broadcast(gate[m * s.c + c]);
        write_run(dx.base[m] + offset, s.hw, stream, [&](index_t i, index_t count) {
          return scale * S::load_some(g + offset + i, count) + mean;
        });
      }
    }
    return;
  }
  const index_t fold = positions_per_row<T>(s, dx.pitch == s.c);
  const Repeated<A, M> gates(gate, s.c, fold);
  const Repeated<A, 1> means(dmean, s.c, fold);
  for (index_t p = at.p0; p < at.p1; p += fold) {
    const index_t offset = p * s.c + at.c0;
    const index_t width = fold == 1 ? at.c1 - at.c0 : s.c * (fold < at.p1 - p ? fold : at.p1 - p);
    for (int m = 0; m < M; ++m)
      write_run(dx.base[m] + p * dx.pitch + at.c0, width, stream, [&](index_t i, index_t count) {
        const index_t c = at.c0 + i;
        return SA::load_some(gates.first + m * gates.stride + c, count) *
                   S::load_some(g + offset + i, count) +
               SA::load_some(means.first + c, count);
      });
  }
}

}  // namespace chattn::CHATTN_ISA
