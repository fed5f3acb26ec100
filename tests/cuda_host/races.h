// Shadow memory: which CUDA thread last wrote and read each byte, and when.
//
// Time is the number of barriers completed so far. An earlier access is ordered before this one if
// this thread has since passed a barrier that both took part in. Blocks without such a barrier are
// ordered by a counter: a thread that passes a barrier of its block, calls __threadfence() and then
// adds to the counter releases what its block did before the barrier, to every thread that later
// adds to the same counter and calls __threadfence(), and from its next barrier on to its block.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda_host/device_host.h"

namespace hostcuda {

// When a thread last passed a barrier of each kind; for warps, see LaneTimes.
struct Passed {
  std::uint32_t block = 0, cluster = 0, grid = 0;
};

// What a block did before this time is ordered before whatever its holder does.
struct Release {
  std::uint32_t block, when;
};
using Releases = std::vector<Release>;

// What each lane of a thread's warp did before this time is ordered before the thread: a __syncwarp
// orders the lanes in its mask, and what was ordered before them.
using LaneTimes = std::array<std::uint32_t, 32>;

struct ThreadTime {
  std::uint32_t thread;  // block * 1024 + thread in the block
  std::uint32_t cluster_blocks;
  std::uint32_t now;
  Passed passed;
  const LaneTimes* lanes;
  const Releases *own, *of_block;  // acquired by the thread, and by its block
};

struct Conflict {
  const char* kind = nullptr;  // null: none
  std::uint32_t thread = 0;
  bool has_site = false;
  Site site;
};

class RaceCell {
 public:
  Conflict access(const ThreadTime& me, Access kind, Site site);
  bool written() const { return writer_.who != 0; }
  bool streamed() const { return streamed_; }

 private:
  struct Stamp {
    std::uint32_t who = 0;  // thread + 1
    std::uint32_t when = 0;
  };
  static bool ordered(const Stamp& before, const ThreadTime& me);
  Conflict read(const ThreadTime& me, Site site);
  Conflict write(const ThreadTime& me, bool atomic, Site site);

  Stamp writer_;
  // The last reader, and the last ones in another thread, warp and block than the last reader, so
  // that a nearer reader never hides one that is still unordered.
  Stamp readers_[4];
  Site writer_site_, reader_site_;
  bool atomic_ = false, streamed_ = false;
};

constexpr std::size_t kRaceUnit = 1;  // bytes per cell

}  // namespace hostcuda
