// Efficient channel attention on the CPU: the engine's passes around a convolution over channels.
//
// A gate depends on the few channels around it, so a thread takes a sample's channels in tiles that
// stay in its second-level cache: the second pass over a tile does not go to memory.
#include <vector>

#include "blocks/eca/params.h"
#include "engine/cpu/arrays.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/schedule.h"

namespace chattn::cpu {
namespace {

// Bytes of the maps of one tile.
constexpr index_t kCachedBytes = 512 << 10;

// The convolution over one sample's channels, and its two gradients.
template <class A>
struct Convolution {
  const ConvGate& gate;
  index_t c;
  std::vector<A> w;

  Convolution(const ConvGate& g, index_t channels, const void* weight)
      : gate(g), c(channels), w(numbers<A>(weight, g.weight_dtype, g.weights(channels), 0)) {}

  // Calls body(first, last, offset) for the runs of [c0, c1) whose channels, moved by `shift`, are
  // there: at channel + offset.
  template <class Body>
  void runs(index_t c0, index_t c1, index_t shift, Body&& body) const {
    const index_t low = std::clamp(-shift, c0, c1), high = std::clamp(c - shift, low, c1);
    body(low, high, shift);
    if (!gate.circular) return;
    body(c0, low, shift + c);
    body(high, c1, shift - c);
  }

  // out[i] = sum_j w[j] v[i + j - reach], or, transposed, sum_j w[j] v[i - j + reach].
  void apply(const A* v, A* out, index_t c0, index_t c1, bool transposed) const {
    std::fill(out + c0, out + c1, A(0));
    for (index_t j = 0; j < gate.taps; ++j) {
      const index_t shift = transposed ? gate.reach() - j : j - gate.reach();
      runs(c0, c1, shift, [&](index_t first, index_t last, index_t offset) {
        if (!gate.per_channel) {
          const A tap = w[static_cast<std::size_t>(j)];
          for (index_t i = first; i < last; ++i) out[i] += tap * v[i + offset];
        } else {
          const A* taps = w.data() + j + (transposed ? offset * gate.taps : 0);
          for (index_t i = first; i < last; ++i) out[i] += taps[i * gate.taps] * v[i + offset];
        }
      });
    }
  }

  // out[j] += sum_i dz[i] p[i + j - reach], or out[i][j] += dz[i] p[i + j - reach].
  void weight_gradient(const A* dz, const A* p, A* out) const {
    for (index_t j = 0; j < gate.taps; ++j)
      runs(0, c, j - gate.reach(), [&](index_t first, index_t last, index_t offset) {
        if (gate.per_channel) {
          for (index_t i = first; i < last; ++i) out[i * gate.taps + j] += dz[i] * p[i + offset];
          return;
        }
        constexpr int kSums = 16;  // independent, so that they are added as vectors
        A sums[kSums] = {};
        index_t i = first;
        for (; i + kSums <= last; i += kSums)
          for (int q = 0; q < kSums; ++q) sums[q] += dz[i + q] * p[i + q + offset];
        for (; i < last; ++i) sums[0] += dz[i] * p[i + offset];
        for (int width = kSums / 2; width > 0; width /= 2)
          for (int q = 0; q < width; ++q) sums[q] += sums[q + width];
        out[j] += sums[0];
      });
  }
};

// Walks over a sample's channels in tiles: reduce(c0, c1) is called once for every channel, and
// write(c0, c1) once all channels within `reach` have been reduced.
template <class Reduce, class Write>
void for_tiles(const MapShape& map, const ConvGate& gate, index_t maps, Reduce&& reduce,
               Write&& write) {
  const index_t plane_bytes = map.hw * size_of(map.dtype) * maps;
  // Short rows of a channels_last map would waste what is fetched around them.
  const index_t least = map.channels_last ? 2048 / size_of(map.dtype) : 1;
  const index_t tile = std::max(kCachedBytes / plane_bytes, least), reach = gate.reach();
  if (map.channels_last && map.c <= kWholeRow) {
    reduce(0, map.c);
    write(0, map.c);
    return;
  }
  // The first gates of a circular convolution need the last channels.
  const index_t end = gate.circular ? std::max<index_t>(map.c - reach, 0) : map.c;
  if (end < map.c) reduce(end, map.c);
  index_t done = 0;
  for (index_t c0 = 0; c0 < map.c; c0 += tile) {
    const index_t c1 = std::min(map.c, c0 + tile), needed = std::min(end, c1 + reach);
    if (done < needed) reduce(done, needed);
    done = std::max(done, needed);
    write(c0, c1);
  }
}

// body(region) over channels [c0, c1) of a sample, which the pass before has read: in channels_last
// the last positions first, as all of them may be more than the cache holds.
template <class Body>
void tile_backwards(const MapShape& map, index_t n, index_t c0, index_t c1, Body&& body) {
  Region r = region(map, n, c0, c1);
  for (index_t p0 = (map.hw - 1) / r.span * r.span; p0 >= 0; p0 -= r.span) {
    r.p0 = p0;
    body(r);
    r.p1 = p0;
  }
}

template <class A>
struct Forward {
  const EcaForward& p;
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const MatrixKernels& matrix = kernels().matrix(p.gate.weight_dtype);
  const index_t c = p.map.c;
  const Convolution<A> convolution{p.gate, c, p.weight};

  void pool(index_t n, index_t c0, index_t c1) const {
    A* sum = at<A>(p.pooled, n * c);
    const A scale = A(1) / static_cast<A>(p.map.hw);
    for (index_t i = c0; i < c1; ++i) sum[i] *= scale;
  }

  void gates(index_t n, index_t c0, index_t c1) const {
    A* s = at<A>(p.scale, n * c);
    convolution.apply(at<A>(p.pooled, n * c), s, c0, c1, false);
    matrix.activate(p.gate.gate, 0, s + c0, c1 - c0);
  }

  void rescale(const Region& r, bool stream) const {
    pass.rescale(p.map, p.x, r, at<A>(p.scale, r.n * c), p.y, stream);
  }

  void run(const Parallel& parallel) const {
    const Schedule schedule = Schedule::make(p.map, 0, parallel.threads);
    if (schedule.by_sample) {
      parallel.run(0, p.map.n, schedule.grain, [&](index_t first, index_t last) {
        for (index_t n = first; n < last; ++n)
          for_tiles(
              p.map, p.gate, 1,
              [&](index_t c0, index_t c1) {
                pass.squeeze(p.map, p.x, region(p.map, n, c0, c1), at<A>(p.pooled, n * c));
                pool(n, c0, c1);
              },
              [&](index_t c0, index_t c1) {
                gates(n, c0, c1);
                tile_backwards(p.map, n, c0, c1,
                               [&](const Region& r) { rescale(r, schedule.stream); });
              });
      });
      return;
    }
    const SpanSums<A> sums(p.map, 1);
    for_regions(p.map, parallel, [&](const Region& r) {
      pass.squeeze(p.map, p.x, r, sums.at(r, at<A>(p.pooled, r.n * c)));
    });
    for_planes(p.map, parallel, sums.count(), [&](index_t n, index_t c0, index_t c1) {
      sums.merge(n, c0, c1, 0, 1, at<A>(p.pooled, n * c));
      pool(n, c0, c1);
    });
    for_planes(p.map, parallel, p.gate.taps + 8,
               [&](index_t n, index_t c0, index_t c1) { gates(n, c0, c1); });
    for_regions(p.map, parallel, [&](const Region& r) { rescale(r, schedule.stream); }, true);
  }
};

template <class A>
struct Backward {
  const EcaBackward& p;
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const index_t c = p.map.c;
  const Convolution<A> convolution{p.gate, c, p.weight};
  std::vector<A> dz = std::vector<A>(static_cast<std::size_t>(p.map.planes()));
  std::vector<A> dmean = std::vector<A>(p.dx ? static_cast<std::size_t>(p.map.planes()) : 0);

  // dz of planes whose dots are there.
  void before_gate(index_t n, index_t c0, index_t c1) {
    A* d = dz.data() + n * c;
    const A* dgate = at<A>(p.dgate, n * c);
    const A* s = at<A>(p.scale, n * c);
    for (index_t i = c0; i < c1; ++i)
      d[i] = gate_gradient(p.gate.gate, s[i], dgate ? d[i] + dgate[i] : d[i]);
  }

  void means(index_t n, index_t c0, index_t c1) {
    A* mean = dmean.data() + n * c;
    convolution.apply(dz.data() + n * c, mean, c0, c1, true);
    const A scale = A(1) / static_cast<A>(p.map.hw);
    for (index_t i = c0; i < c1; ++i) mean[i] *= scale;
  }

  void gradient(const Region& r, bool stream) const {
    pass.gradient(p.map, p.dy, r, at<A>(p.scale, r.n * c), dmean.data() + r.n * c, p.dx, stream);
  }

  // The samples' gradients are added in their order, whatever the number of threads.
  void weight_gradients(const Parallel& parallel) {
    const index_t samples = p.map.n, count = p.gate.weights(c);
    const index_t parts = std::min<index_t>(samples, 8);
    std::vector<A> part(static_cast<std::size_t>(parts * count), A(0));
    const index_t grain = std::max<index_t>(1, 32768 * parts / (samples * c * p.gate.taps));
    parallel.run(0, parts, grain, [&](index_t first, index_t last) {
      for (index_t q = first; q < last; ++q)
        for (index_t n = samples * q / parts; n < samples * (q + 1) / parts; ++n)
          convolution.weight_gradient(dz.data() + n * c, at<A>(p.pooled, n * c),
                                      part.data() + q * count);
    });
    for (index_t i = 0; i < count; ++i) {
      A total = 0;
      for (index_t q = 0; q < parts; ++q) total += part[static_cast<std::size_t>(q * count + i)];
      put<A>(p.dweight, p.gate.weight_dtype, i, total);
    }
  }

  void run(const Parallel& parallel) {
    const Schedule schedule = Schedule::make(p.map, 0, parallel.threads);
    if (schedule.by_sample) {
      parallel.run(0, p.map.n, schedule.grain, [&](index_t first, index_t last) {
        for (index_t n = first; n < last; ++n)
          for_tiles(
              p.map, p.gate, 2,
              [&](index_t c0, index_t c1) {
                pass.dot(p.map, p.dy, p.x, region(p.map, n, c0, c1), dz.data() + n * c);
                before_gate(n, c0, c1);
              },
              [&](index_t c0, index_t c1) {
                if (!p.dx) return;
                means(n, c0, c1);
                tile_backwards(p.map, n, c0, c1,
                               [&](const Region& r) { gradient(r, schedule.stream); });
              });
      });
    } else {
      const SpanSums<A> sums(p.map, 1);
      for_regions(p.map, parallel, [&](const Region& r) {
        pass.dot(p.map, p.dy, p.x, r, sums.at(r, dz.data() + r.n * c));
      });
      for_planes(p.map, parallel, sums.count(), [&](index_t n, index_t c0, index_t c1) {
        sums.merge(n, c0, c1, 0, 1, dz.data() + n * c);
        before_gate(n, c0, c1);
      });
      if (p.dx) {
        for_planes(p.map, parallel, p.gate.taps,
                   [&](index_t n, index_t c0, index_t c1) { means(n, c0, c1); });
        for_regions(p.map, parallel, [&](const Region& r) { gradient(r, schedule.stream); }, true);
      }
    }
    if (p.dweight) weight_gradients(parallel);
  }
};

}  // namespace

template <>
void run(const EcaForward& p, const Parallel& parallel) {
  if (p.map.dtype == DType::f64) {
    Forward<double>{p}.run(parallel);
  } else {
    Forward<float>{p}.run(parallel);
  }
}

template <>
void run(const EcaBackward& p, const Parallel& parallel) {
  if (p.map.dtype == DType::f64) {
    Backward<double>{p}.run(parallel);
  } else {
    Backward<float>{p}.run(parallel);
  }
}

}  // namespace chattn::cpu
