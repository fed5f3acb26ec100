// Threads that do not meet where they should.
#include "cuda_host/zoo/zoo.h"
//
#include "common/device_grid.cuh"

namespace chattn::zoo {
namespace {

CHATTN_KERNEL(kThreads) divergent_barrier(const float*, float* out) {
  const int t = local_thread();
  if (t < 128) {
    __syncthreads();
  } else {
    st(out + t, 1.f);
    // FAULT divergent_barrier: divergent barrier: other threads wait in the one at barriers.cu
    __syncthreads();
  }
}
ZOO(divergent_barrier, nullptr, .block = kThreads);

// clang-format off: both barriers on one line, told apart by their column
CHATTN_KERNEL(kThreads) divergent_on_one_line(const float*, float* out) {
  const int t = local_thread();
  // FAULT divergent_on_one_line: divergent barrier
  if (t < 128) __syncthreads(); else __syncthreads();
  st(out + t, 1.f);
}
// clang-format on
ZOO(divergent_on_one_line, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) barrier_in_branch(const float*, float* out) {
  const int t = local_thread();
  float v = 0;
  // FAULT barrier_in_branch: deadlock: 128 threads have exited, 100 threads wait in __syncthreads
  if (t < 100) __syncthreads();
  if (t >= 100) v = __shfl_xor_sync(kFullMask, v, 1);
  st(out + t, v);
}
ZOO(barrier_in_branch, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) shuffle_in_branch(const float*, float* out) {
  const int t = local_thread();
  float v = 1;
  // FAULT shuffle_in_branch: a thread exits that others wait for in the warp operation
  if (t % kWarp < 16) v += __shfl_xor_sync(kFullMask, v, 1);
  st(out + t, v);
}
ZOO(shuffle_in_branch, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) shuffle_with_exited(const float*, float* out) {
  const int t = local_thread();
  if (t == 0) return;
  // FAULT shuffle_with_exited: warp operation whose mask 0xffffffff names exited lanes
  st(out + t, __shfl_down_sync(kFullMask, 1.f, 1));
}
ZOO(shuffle_with_exited, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) shuffle_mask_lacks_self(const float*, float* out) {
  const int t = local_thread();
  // FAULT shuffle_mask_lacks_self: warp operation whose mask 0xfffffffe lacks the own lane
  st(out + t, __shfl_xor_sync(0xfffffffeu, 1.f, 1));
}
ZOO(shuffle_mask_lacks_self, nullptr, .block = kThreads);

CHATTN_KERNEL(48) shuffle_beyond_block(const float*, float* out) {
  const int t = local_thread();
  float v = 1;
  // FAULT shuffle_beyond_block: warp operation whose mask 0xffffffff names lanes that do not exist
  if (t >= 32) v = warp_sum(v);
  st(out + t, v);
}
ZOO(shuffle_beyond_block, nullptr, .block = 48);

CHATTN_KERNEL(kThreads) shuffle_masks_overlap(const float*, float* out) {
  const int t = local_thread(), lane = t % kWarp;
  const unsigned mask = lane < 16 ? 0x1ffffu : 0xffff0000u;
  // FAULT shuffle_masks_overlap: a thread exits that others wait for in the warp operation
  st(out + t, __shfl_sync(mask, 1.f, 0));
}
ZOO(shuffle_masks_overlap, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) different_warp_operations(const float*, float* out) {
  const int t = local_thread();
  float v = 1;
  if (t % 2 == 0)
    v = __shfl_sync(kFullMask, v, 0);
  else
    // FAULT different_warp_operations: warp operation in which lane 0 waits in another one
    v = __shfl_xor_sync(kFullMask, v, 1);
  st(out + t, v);
}
ZOO(different_warp_operations, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) grid_sync_without_grid(const float*, float* out) {
  // FAULT grid_sync_without_grid: grid_sync in a launch that is not cooperative
  grid_sync();
  st(out + global_thread(), 1.f);
}
ZOO(grid_sync_without_grid, nullptr, .grid = 2, .block = kThreads);

CHATTN_KERNEL(kThreads) grid_sync_after_exit(const float*, float* out) {
  if (blockIdx.x == 0) return;
  // FAULT grid_sync_after_exit: grid_sync after a thread of the grid has exited
  grid_sync();
  st(out + global_thread(), 1.f);
}
ZOO(grid_sync_after_exit, nullptr, .grid = 2, .block = kThreads, .stream = nullptr,
    .cooperative = true);

// Another block was to set the flag.
CHATTN_KERNEL(kThreads) waits_in_a_loop(const float* in, float* out) {
  const int t = local_thread();
  st(out + global_thread(), 0.f);
  // FAULT waits_in_a_loop: accesses with no barrier between them: does it wait for a thread?
  while (blockIdx.x == 0 && t == 0 && ld(in) == 0.f) {
  }
}
ZOO(waits_in_a_loop, nullptr, .grid = 2, .block = kThreads);

}  // namespace
}  // namespace chattn::zoo
