// Small kernels, correct and broken. A comment above the faulty line, `// FAULT kernel: text`, says
// what the runtime must report there; the test reads these comments.
#pragma once
#include <vector>

#include "common/types.h"
//
#include "common/device.cuh"

namespace chattn::zoo {

constexpr int kThreads = 256;
constexpr int kElements = 4096;  // of `in`, which holds 0, 1, 2, ..., and of `out`

using Kernel = void (*)(const float* in, float* out);

struct Case {
  const char* name;
  Kernel kernel;
  float (*expected)(int i);  // of out[i], for all threads of the grid; null for broken kernels
  LaunchConfig config;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registered {
  explicit Registered(const Case& c) { cases().push_back(c); }
};

// ZOO(kernel, expected, .grid = ..., ...) with the fields of LaunchConfig in their order.
#define ZOO(kernel, expected, ...) \
  static const Registered kernel##_case({#kernel, kernel, expected, LaunchConfig{__VA_ARGS__}})

// Index of this thread in a one-dimensional grid.
CHATTN_DEVICE int global_thread() {
  return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}
CHATTN_DEVICE int local_thread() { return static_cast<int>(threadIdx.x); }

}  // namespace chattn::zoo
