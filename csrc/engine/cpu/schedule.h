// How a block's passes are spread over threads and caches.
#pragma once
#include <algorithm>
#include <functional>

#include "engine/cpu/parallel.h"
#include "engine/map.h"

namespace chattn::cpu {

// Either every thread takes whole tiles of samples and runs all stages on one while it is in cache,
// or, where there are too few samples for that, all threads share each stage in turn.
struct Schedule {
  bool by_sample = true;
  index_t tile = 1;  // samples that go through the gate together and share its weights
  bool stream = false;

  // A tile's map should stay in a core's share of the cache between its two passes.
  static constexpr index_t kTileBytes = 3 << 20;
  // Outputs beyond this size leave the cache before anybody reads them: write them past it.
  static constexpr index_t kStreamBytes = 12 << 20;

  // `weight_bytes`: what the gate reads for every tile.
  static Schedule make(const MapShape& map, index_t weight_bytes, int threads) {
    Schedule s;
    const index_t sample_bytes = std::max<index_t>(1, map.c * map.hw * size_of(map.dtype));
    const index_t share = (map.n + threads - 1) / threads;  // samples of one thread
    const index_t most = std::clamp<index_t>(kTileBytes / sample_bytes, 1, share);
    const index_t tiles = (share + most - 1) / most;
    s.tile = (share + tiles - 1) / tiles;
    // Every thread would read all weights; where they outweigh its maps, threads share them
    // instead.
    s.by_sample = threads <= 1 || (map.n >= threads && weight_bytes < share * sample_bytes);
    s.stream = map.bytes() >= kStreamBytes;
    return s;
  }
};

// body(sample, first channel, last channel) over the whole map; a task is a run of channels. A pass
// that finds in the cache what the pass before it read last goes `backwards`.
inline void for_channels(const MapShape& map, const Parallel& parallel,
                         const std::function<void(index_t, index_t, index_t)>& body,
                         bool backwards = false) {
  // channels_last: a task keeps at least a cache line of every row.
  const index_t width = map.channels_last ? 32 : 1;
  const index_t blocks = (map.c + width - 1) / width;
  const index_t block_bytes = width * map.hw * size_of(map.dtype);
  const index_t grain = std::max<index_t>(1, 65536 / std::max<index_t>(1, block_bytes));
  parallel.run(0, map.n * blocks, grain, [&](index_t first, index_t last) {
    while (backwards && first < last) {
      const index_t n = (last - 1) / blocks, b1 = last - n * blocks;
      const index_t b0 = std::max<index_t>(0, b1 - (last - first));
      body(n, b0 * width, std::min(map.c, b1 * width));
      last -= b1 - b0;
    }
    while (first < last) {
      const index_t n = first / blocks, b0 = first % blocks;
      const index_t b1 = std::min(blocks, b0 + (last - first));
      body(n, b0 * width, std::min(map.c, b1 * width));
      first += b1 - b0;
    }
  });
}

}  // namespace chattn::cpu
