// The passes over the map, for one sample and a range of its channels. Compiled per instruction
// set.
//
// M inputs share a pass (a selective kernel has M branches): the squeeze sums over them, the
// rescale weighs them. `gate` then has M rows of C.
#pragma once
#include "engine/cpu/simd.h"
#include "engine/map.h"

namespace chattn::CHATTN_ISA {

// ---- (N, C, HW): a channel is a contiguous plane

// Calls body(offset, count) for every vector of [0, length); the last may be partial.
template <int kLanes, class Body>
CHATTN_INLINE void for_vectors(index_t length, Body&& body) {
  index_t i = 0;
  for (; i + kLanes <= length; i += kLanes) body(i, static_cast<index_t>(kLanes));
  if (i < length) body(i, length - i);
}

// Sum over [0, length) of value(offset), a vector of lanes; four chains hide the adder's latency.
template <class S, class Full, class Partial>
CHATTN_INLINE typename S::A sum_of(index_t length, Full&& full, Partial&& partial) {
  constexpr int kL = S::kLanes;
  typename S::V s0{}, s1{}, s2{}, s3{};
  index_t i = 0;
  for (; i + 4 * kL <= length; i += 4 * kL) {
    s0 += full(i);
    s1 += full(i + kL);
    s2 += full(i + 2 * kL);
    s3 += full(i + 3 * kL);
  }
  for (; i + kL <= length; i += kL) s0 += full(i);
  if (i < length) s1 += partial(i, static_cast<int>(length - i));
  return S::sum((s0 + s1) + (s2 + s3));
}

template <class T, int M>
CHATTN_INLINE acc_t<T> plane_sum(const T* const* u, index_t offset, index_t hw) {
  using S = Simd<T>;
  return sum_of<S>(
      hw,
      [&](index_t i) {
        auto v = S::load(u[0] + offset + i);
        for (int m = 1; m < M; ++m) v += S::load(u[m] + offset + i);
        return v;
      },
      [&](index_t i, int count) {
        auto v = S::load_partial(u[0] + offset + i, count);
        for (int m = 1; m < M; ++m) v += S::load_partial(u[m] + offset + i, count);
        return v;
      });
}

template <class T>
CHATTN_INLINE acc_t<T> plane_dot(const T* g, const T* x, index_t hw) {
  using S = Simd<T>;
  return sum_of<S>(
      hw, [&](index_t i) { return S::load(g + i) * S::load(x + i); },
      [&](index_t i, int count) {
        return S::load_partial(g + i, count) * S::load_partial(x + i, count);
      });
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

// Column sums of rows(position) over [c0, c1): fold(position, channel, count) gives one vector.
// Rows are taken in chunks that stay in the first-level cache; partial sums of a chunk live in
// registers, so that the error grows with the number of chunks and not of positions.
template <class T, class Fold>
CHATTN_INLINE void column_sums(index_t hw, index_t c0, index_t c1, acc_t<T>* out, Fold&& fold) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int kL = S::kLanes, kBlock = 4 * kL;
  const index_t row_bytes = (c1 - c0) * static_cast<index_t>(sizeof(T));
  index_t chunk = 32768 / (row_bytes > 0 ? row_bytes : 1);
  chunk = chunk < 16 ? 16 : (chunk > 128 ? 128 : chunk);
  for (index_t c = c0; c < c1; ++c) out[c] = 0;
  for (index_t p0 = 0; p0 < hw; p0 += chunk) {
    const index_t p1 = p0 + chunk < hw ? p0 + chunk : hw;
    index_t c = c0;
    for (; c + kBlock <= c1; c += kBlock) {
      V s0{}, s1{}, s2{}, s3{};
      for (index_t p = p0; p < p1; ++p) {
        s0 += fold(p, c, static_cast<index_t>(kL));
        s1 += fold(p, c + kL, static_cast<index_t>(kL));
        s2 += fold(p, c + 2 * kL, static_cast<index_t>(kL));
        s3 += fold(p, c + 3 * kL, static_cast<index_t>(kL));
      }
      using SA = Simd<acc_t<T>>;
      SA::store(out + c, SA::load(out + c) + s0);
      SA::store(out + c + kL, SA::load(out + c + kL) + s1);
      SA::store(out + c + 2 * kL, SA::load(out + c + 2 * kL) + s2);
      SA::store(out + c + 3 * kL, SA::load(out + c + 3 * kL) + s3);
    }
    for (; c < c1; c += kL) {
      using SA = Simd<acc_t<T>>;
      const index_t count = c1 - c < kL ? c1 - c : kL;
      V s{};
      for (index_t p = p0; p < p1; ++p) s += fold(p, c, count);
      SA::store_some(out + c, SA::load_some(out + c, count) + s, count);
    }
  }
}

// ---- the table's functions

template <class T, int M>
void squeeze(const MapShape& s, const T* const* u, index_t n, index_t c0, index_t c1, acc_t<T>* sum,
             acc_t<T>* peak) {
  using S = Simd<T>;
  if (!s.channels_last) {
    for (index_t c = c0; c < c1; ++c) {
      const index_t offset = (n * s.c + c) * s.hw;
      sum[c] = plane_sum<T, M>(u, offset, s.hw);
      if (peak) peak[c] = plane_max(u[0] + offset, s.hw);
    }
    return;
  }
  const index_t base = n * s.hw * s.c;
  column_sums<T>(s.hw, c0, c1, sum, [&](index_t p, index_t c, index_t count) {
    auto v = S::load_some(u[0] + base + p * s.c + c, count);
    for (int m = 1; m < M; ++m) v += S::load_some(u[m] + base + p * s.c + c, count);
    return v;
  });
  if (!peak) return;
  using SA = Simd<acc_t<T>>;
  for (index_t p = 0; p < s.hw; ++p) {
    const T* row = u[0] + base + p * s.c;
    for_vectors<S::kLanes>(c1 - c0, [&](index_t i, index_t count) {
      auto v = S::load_some(row + c0 + i, count);
      if (p > 0) v = S::max(SA::load_some(peak + c0 + i, count), v);
      SA::store_some(peak + c0 + i, v, count);
    });
  }
}

template <class T>
void dot(const MapShape& s, const T* g, const T* x, index_t n, index_t c0, index_t c1,
         acc_t<T>* out, const acc_t<T>* peak, acc_t<T>* count_out) {
  using S = Simd<T>;
  if (!s.channels_last) {
    for (index_t c = c0; c < c1; ++c) {
      const index_t offset = (n * s.c + c) * s.hw;
      out[c] = plane_dot(g + offset, x + offset, s.hw);
      if (peak) count_out[c] = plane_count(x + offset, s.hw, peak[c]);
    }
    return;
  }
  const index_t base = n * s.hw * s.c;
  column_sums<T>(s.hw, c0, c1, out, [&](index_t p, index_t c, index_t count) {
    const index_t offset = base + p * s.c + c;
    return S::load_some(g + offset, count) * S::load_some(x + offset, count);
  });
  if (!peak) return;
  for (index_t c = c0; c < c1; ++c) count_out[c] = 0;
  for (index_t p = 0; p < s.hw; ++p)
    for (index_t c = c0; c < c1; ++c) count_out[c] += to_acc(x[base + p * s.c + c]) == peak[c];
}

template <class T, int M>
void rescale(const MapShape& s, const T* const* u, index_t n, index_t c0, index_t c1,
             const acc_t<T>* gate, T* y, bool stream) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  if (!s.channels_last) {
    for (index_t c = c0; c < c1; ++c) {
      const index_t offset = (n * s.c + c) * s.hw;
      typename S::V g[M];
      for (int m = 0; m < M; ++m) g[m] = S::broadcast(gate[m * s.c + c]);
      write_run(y + offset, s.hw, stream, [&](index_t i, index_t count) {
        auto v = g[0] * S::load_some(u[0] + offset + i, count);
        for (int m = 1; m < M; ++m) v += g[m] * S::load_some(u[m] + offset + i, count);
        return v;
      });
    }
    return;
  }
  for (index_t p = 0; p < s.hw; ++p) {
    const index_t offset = (n * s.hw + p) * s.c + c0;
    write_run(y + offset, c1 - c0, stream, [&](index_t i, index_t count) {
      auto v = SA::load_some(gate + c0 + i, count) * S::load_some(u[0] + offset + i, count);
      for (int m = 1; m < M; ++m)
        v += SA::load_some(gate + m * s.c + c0 + i, count) * S::load_some(u[m] + offset + i, count);
      return v;
    });
  }
}

template <class T>
void gradient(const MapShape& s, const T* g, const T* x, index_t n, index_t c0, index_t c1,
              const acc_t<T>* gate, const acc_t<T>* dmean, const acc_t<T>* peak,
              const acc_t<T>* dpeak, T* dx, bool stream) {
  using S = Simd<T>;
  using SA = Simd<acc_t<T>>;
  using V = typename S::V;
  const V zero{};
  if (!s.channels_last) {
    for (index_t c = c0; c < c1; ++c) {
      const index_t offset = (n * s.c + c) * s.hw;
      const V scale = S::broadcast(gate[c]), mean = S::broadcast(dmean[c]);
      if (!peak) {
        write_run(dx + offset, s.hw, stream, [&](index_t i, index_t count) {
          return scale * S::load_some(g + offset + i, count) + mean;
        });
        continue;
      }
      const V top = S::broadcast(peak[c]), share = S::broadcast(dpeak[c]);
      write_run(dx + offset, s.hw, stream, [&](index_t i, index_t count) {
        const V hit = S::load_some(x + offset + i, count) == top ? share : zero;
        return scale * S::load_some(g + offset + i, count) + (mean + hit);
      });
    }
    return;
  }
  for (index_t p = 0; p < s.hw; ++p) {
    const index_t offset = (n * s.hw + p) * s.c + c0;
    write_run(dx + offset, c1 - c0, stream, [&](index_t i, index_t count) {
      V v = SA::load_some(gate + c0 + i, count) * S::load_some(g + offset + i, count) +
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
