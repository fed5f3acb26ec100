// How a block's passes are spread over threads and caches.
#pragma once
#include <algorithm>
#include <memory>

#include "engine/cpu/kernels.h"
#include "engine/cpu/parallel.h"

namespace chattn::cpu {

// Either every thread takes whole tiles of samples and runs all stages on one while it is in cache,
// or, where there are too few samples for that, all threads share each stage in turn.
struct Schedule {
  bool by_sample = true;
  index_t tile = 1;   // samples that go through the gate together and share its weights
  index_t grain = 1;  // samples that a thread takes at least
  bool stream = false;

  // A tile's map should stay in a core's share of the cache between its two passes.
  static constexpr index_t kTileBytes = 3 << 20;
  // Outputs beyond this size leave the cache before anybody reads them: write them past it.
  static constexpr index_t kStreamBytes = 12 << 20;
  // Another thread is not worth waking up for less: as much as PyTorch's operations leave to one.
  static constexpr index_t kTaskBytes = 32768 * 4;

  // `weight_bytes`: what the gate reads for every tile.
  static Schedule make(const MapShape& map, index_t weight_bytes, int threads) {
    Schedule s;
    const index_t sample_bytes = std::max<index_t>(1, map.c * map.hw * size_of(map.dtype));
    const index_t share = (map.n + threads - 1) / threads;  // samples of one thread
    const index_t most = std::clamp<index_t>(kTileBytes / sample_bytes, 1, share);
    index_t tiles = (share + most - 1) / most;
    // Unless reading the weights for each would take longer than reading the maps again.
    if ((tiles - 1) * weight_bytes > share * sample_bytes) tiles = 1;
    s.tile = (share + tiles - 1) / tiles;
    // Every thread would read all weights; where they outweigh its maps, threads share them
    // instead.
    s.by_sample = threads <= 1 || (map.n >= threads && weight_bytes < share * sample_bytes);
    s.grain = std::max<index_t>(1, kTaskBytes / (sample_bytes + weight_bytes));
    s.stream = map.bytes() >= kStreamBytes;
    return s;
  }
};

// How the positions of a channels_last sample are divided: by the shape alone. Planes are not.
struct Spans {
  index_t count = 1, length = 1;

  // Enough for the threads of most machines, and long enough that a row of sums for each costs
  // little beside what is read; where the map is huge, so many that its sums stay precise.
  static Spans of(const MapShape& map) {
    constexpr index_t kPositions = 24, kNumbers = 8192, kMost = 16, kChunk = 64;
    const index_t hw = std::max<index_t>(1, map.hw);
    if (!map.channels_last) return {1, hw};
    index_t longest = kChunk * kChunk;
    while (longest / kChunk * (longest / kChunk) < hw / kChunk) longest *= 2;
    const index_t shortest = std::max(kPositions, kNumbers / std::max<index_t>(1, map.c));
    const index_t count = std::max(std::clamp<index_t>(hw / shortest, 1, kMost), hw / longest);
    const index_t length = (hw + count - 1) / count;
    return {(hw + length - 1) / length, length};
  }
};

// All of a sample's positions.
inline Region region(const MapShape& map, index_t n, index_t c0, index_t c1) {
  return {n, c0, c1, 0, map.hw, Spans::of(map).length};
}

// How a map is divided into regions: a task is a run of channels of a sample, or in channels_last
// of one of its spans, so that a thread reads rows from end to end.
struct Tasks {
  const MapShape& map;
  const Spans spans = Spans::of(map);
  // channels_last: a task keeps at least a cache line of every row.
  const index_t width = !map.channels_last ? 1 : map.c > kWholeRow ? 32 : map.c;
  const index_t blocks = (map.c + width - 1) / width;
  const index_t block_bytes = width * std::min(spans.length, map.hw) * size_of(map.dtype);
  const index_t grain =
      std::max<index_t>(1, Schedule::kTaskBytes / std::max<index_t>(1, block_bytes));

  index_t of_sample() const { return spans.count * blocks; }

  // Blocks [b0, b1) of a span.
  Region region(index_t span, index_t b0, index_t b1) const {
    const index_t p0 = span % spans.count * spans.length;
    return {span / spans.count,
            b0 * width,
            std::min(map.c, b1 * width),
            p0,
            std::min(map.hw, p0 + spans.length),
            spans.length};
  }

  // body(region) for tasks [first, last). Backwards, a run of planes is taken in parts, the last
  // first.
  template <class Body>
  void run(index_t first, index_t last, bool backwards, Body&& body) const {
    const index_t most = map.channels_last ? blocks : grain;
    while (backwards && first < last) {
      const index_t span = (last - 1) / blocks, b1 = last - span * blocks;
      const index_t b0 = std::max<index_t>(0, b1 - std::min(most, last - first));
      body(region(span, b0, b1));
      last -= b1 - b0;
    }
    while (first < last) {
      const index_t span = first / blocks, b0 = first % blocks;
      const index_t b1 = std::min(blocks, b0 + last - first);
      body(region(span, b0, b1));
      first += b1 - b0;
    }
  }
};

// body(region) over the whole map, shared by all threads. A pass that finds in the cache what the
// pass before it read last goes `backwards`.
template <class Body>
void for_regions(const MapShape& map, const Parallel& parallel, Body&& body,
                 bool backwards = false) {
  const Tasks tasks{map};
  parallel.run(0, map.n * tasks.of_sample(), tasks.grain,
               [&](index_t first, index_t last) { tasks.run(first, last, backwards, body); });
}

// body(region) over one sample, on one thread, from its end.
template <class Body>
void backwards(const MapShape& map, index_t n, Body&& body) {
  const Tasks tasks{map};
  tasks.run(n * tasks.of_sample(), (n + 1) * tasks.of_sample(), true, body);
}

// body(sample, first channel, last channel) over what is one number a plane, or `cost` of them.
template <class Body>
void for_planes(const MapShape& map, const Parallel& parallel, index_t cost, Body&& body) {
  parallel.run(0, map.planes(), std::max<index_t>(64, 32768 / cost),
               [&](index_t first, index_t last) {
                 while (first < last) {
                   const index_t n = first / map.c, c0 = first % map.c;
                   const index_t c1 = std::min(map.c, c0 + last - first);
                   body(n, c0, c1);
                   first += c1 - c0;
                 }
               });
}

// Sums over a map whose regions are shared by all threads: of every span by itself, until `merge`
// adds them in their order. `rows` numbers a plane.
template <class A>
class SpanSums {
 public:
  SpanSums(const MapShape& map, index_t rows) : spans_(Spans::of(map)), row_(map.c), rows_(rows) {
    if (spans_.count > 1)
      sums_ = std::make_unique_for_overwrite<A[]>(
          static_cast<std::size_t>(map.n * spans_.count * rows * row_));
  }

  index_t count() const { return spans_.count; }

  // Where a region's sums go: `out`, of its sample, if there is nothing to merge.
  A* at(const Region& r, A* out) const { return sums_ ? of(r.n, r.p0 / spans_.length) : out; }

  // out[r][c] = the sum over all spans, for rows [r0, r1).
  void merge(index_t n, index_t c0, index_t c1, index_t r0, index_t r1, A* out) const {
    if (!sums_) return;
    for (index_t r = r0; r < r1; ++r) {
      A* const o = out + (r - r0) * row_;
      const A* part = of(n, 0) + r * row_;
      std::copy(part + c0, part + c1, o + c0);
      for (index_t q = 1; q < spans_.count; ++q) {
        part += rows_ * row_;
        for (index_t c = c0; c < c1; ++c) o[c] += part[c];
      }
    }
  }

 private:
  Spans spans_;
  index_t row_, rows_;
  std::unique_ptr<A[]> sums_;

  A* of(index_t n, index_t q) const { return sums_.get() + (n * spans_.count + q) * rows_ * row_; }
};

}  // namespace chattn::cpu
