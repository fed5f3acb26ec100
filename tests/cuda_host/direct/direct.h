// Calls of a block in float32 without torch: kernels of one type instead of four, for the tests
// that build many changed copies of csrc/. direct.py calls them.
#pragma once
#include <cstdio>
#include <vector>

#include "cuda_host/buffers.h"
#include "engine/cuda/run.h"
#include "engine/map.h"

#include "common/status.h"

#define DIRECT_API extern "C" __attribute__((visibility("default")))

namespace chattn::direct {

// N, C, HW, channels_last: how every block's sizes begin.
inline MapShape map_of(const int* sizes) {
  MapShape map;
  map.n = sizes[0];
  map.c = sizes[1];
  map.hw = sizes[2];
  map.channels_last = sizes[3] != 0;
  return map;
}

// As cuda_host/host_runner.h.
template <class Call>
void launch(const Call& p) {
  const auto size = static_cast<std::size_t>(cuda::scratch_elements(p));
  std::vector<float> scratch(size + 4);
  hostcuda::BufferScope known;
  Call::arrays(p, hostcuda::Buffers(known));
  known.scratch(scratch.data(), sizeof(float) * size, "scratch");
  const Status status = cuda::run_as<float>(p, scratch.data(), known.stream());
  if (!status.ok) throw hostcuda::LaunchError(status.text);
  known.require_written(Call::kName);
}

// Returns 0, or 1 with the error's text.
template <class F>
int reported(char* error, std::size_t error_size, F&& f) {
  try {
    f();
  } catch (const hostcuda::LaunchError& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return 1;
  }
  return 0;
}

}  // namespace chattn::direct
