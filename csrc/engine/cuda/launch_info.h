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

// A fold over so many maps.
inline LaunchInfo fold_info(const ReducePlan& plan, const MapShape& map, const char* work,
                            index_t reads) {
  const char* const name = plan.kind == ReducePlan::tiles    ? "reduce_tiles"
                           : plan.kind == ReducePlan::planes ? "reduce_planes"
                                                             : "reduce_rows";
  return {name, work, plan.blocks, plan.vec * size_of(map.dtype), reads * map.bytes(), 0};
}

// An apply pass that reads and writes so many maps; beside it work of other blocks.
inline LaunchInfo apply_info(const ApplyPlan& plan, const MapShape& map, const char* work,
                             index_t reads, index_t writes, index_t beside = 0) {
  return {map.channels_last ? "apply_rows" : "apply_spans",
          work,
          plan.sample_tiles * plan.channel_tiles * plan.parts + beside,
          plan.vec * size_of(map.dtype),
          reads * map.bytes(),
          writes * map.bytes()};
}

}  // namespace chattn::cuda
