// How launches are laid out.
#pragma once
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// So many blocks of kThreads threads.
inline LaunchConfig blocks_of_threads(index_t blocks, void* stream, std::size_t shared_bytes = 0) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(blocks));
  config.block = dim3(kThreads);
  config.shared_bytes = shared_bytes;
  config.stream = stream;
  return config;
}

}  // namespace chattn::cuda
