// Shadow memory: which CUDA thread last wrote and read each two bytes, and when.
//
// Time is the number of barriers completed so far. An earlier access is ordered before this one if
// this thread has since passed a barrier that both took part in.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda_host/device_host.h"

namespace hostcuda {

// When a thread last passed a barrier of each kind.
struct Passed {
  std::uint32_t warp = 0, block = 0, cluster = 0, grid = 0;
};

struct ThreadTime {
  std::uint32_t thread;  // block * 1024 + thread in the block
  std::uint32_t cluster_blocks;
  std::uint32_t now;
  Passed passed;
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
  bool atomic_ = false;
};

constexpr std::size_t kRaceUnit = 2;  // bytes per cell

}  // namespace hostcuda
