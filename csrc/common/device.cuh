// The device API kernels are written against: plain CUDA, except for the few things below, which
// exist so that a C++ compiler alone can build and run the same kernels on a CPU (tests/cuda_host).
//
// CUDA names stay: threadIdx, blockIdx, blockDim, gridDim, __syncthreads(), __syncwarp(),
// __shfl_sync(), __shfl_xor_sync(), __shfl_down_sync(), __threadfence(), min(), max().
// Everything else that touches memory or launches goes through:
//
//   ld(p) st(p, v) load_vec<N>(p) store_vec(p, vec)     global memory
//   load_stream<N>(p) store_stream(p, vec)              the same for data that is touched once
//   opaque(v)                                           v, computed with again instead of kept
//   atomic_add(p, v)                                    integers: float sums need a fixed order
//   shared<T>(byte_offset, count) -> Shared<T>          one array inside the dynamic shared memory
//   warp_sum<Width>(v) warp_max<Width>(v)               butterflies over groups of Width lanes
//   cluster_rank() cluster_size() cluster_sync() cluster_sync_relaxed()
//   launch(name, kernel, config, args...) -> Status     and device_info(), has_clusters(kernel)
//   grid_sync()                                         in common/device_grid.cuh
//
// Include it last, and never from a header that other code includes: on the CPU, threadIdx and its
// kin are macros.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/macros.h"
#include "common/status.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "cuda_host/cuda_types.h"
#endif

namespace chattn {

// N elements moved by one access. N = 1 is the scalar case, so that one template covers both.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert(N > 0 && (N & (N - 1)) == 0, "a vector holds a power of two of elements");
  T v[N];
  CHATTN_HD T& operator[](int i) { return v[i]; }
  CHATTN_HD const T& operator[](int i) const { return v[i]; }
};

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// The larger value; NaN if either is NaN (torch's rule).
template <class T>
CHATTN_HD T nan_max(T a, T b) {
  return a > b || a != a ? a : b;
}

struct LaunchConfig {
  dim3 grid{1, 1, 1};
  dim3 block{1, 1, 1};
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks per cluster, along x
  void* stream = nullptr;
  bool cooperative = false;  // allows grid_sync()
};

// What a launcher may ask of the current device. All zero when there is none.
struct DeviceInfo {
  int sm = 0;  // 90 for compute capability 9.0
  int multiprocessors = 0;
  int shared_per_block = 0;  // the most that a launch can opt in to, in bytes
};

}  // namespace chattn

#if defined(__CUDACC__)
#include "common/device_cuda.cuh"
#else
#include "cuda_host/device_host.h"
#endif
