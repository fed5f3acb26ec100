// What the planner tells people: explain(), benchmarks, tests.
#pragma once
#include <vector>

#include "engine/cuda/plan.h"

namespace chattn::cuda {

// What one launch does.
struct LaunchInfo {
  const char* kernel;
  const char* work;
  index_t blocks;
  int vector_bytes;               // of one access to the map
  index_t map_reads, map_writes;  // bytes of feature maps
};

inline const char* name_of(ReducePlan::Kind kind) {
  switch (kind) {
    case ReducePlan::tiles:
      return "reduce_tiles";
    case ReducePlan::planes:
      return "reduce_planes";
    default:
      return "reduce_rows";
  }
}

}  // namespace chattn::cuda
