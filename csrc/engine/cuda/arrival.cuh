// Which of several blocks is the last one done, so that it can go on with what all of them left.
//
// Nobody waits: the others leave. Which block is last depends on timing, so what it then computes
// must not depend on which one it is.
#pragma once
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Counters of arrivals, at most kThreads of them. The launch before the one that counts clears
// them: scratch memory is what somebody left.
struct Arrivals {
  unsigned* counters = nullptr;
  int count = 0;

  // For every thread of a one-dimensional grid.
  CHATTN_DEVICE void clear() const {
    const int tid = static_cast<int>(threadIdx.x);
    if (blockIdx.x == 0 && tid < count) st(counters + tid, 0u);
  }

  // For every thread of a block, once. True in the last of `blocks` blocks that come to a counter:
  // its threads may then load what any thread of the others stored before. `slot`: one element of
  // shared memory for the answer.
  CHATTN_DEVICE bool last(int counter, int blocks, const Shared<int>& slot) const {
    __syncthreads();
    if (threadIdx.x == 0) {
      // The barrier put the block's stores before this fence, and the fence before the arrival.
      __threadfence();
      const unsigned before = atomic_add(counters + counter, 1u);
      __threadfence();
      slot.st(0, before + 1 == static_cast<unsigned>(blocks));
    }
    __syncthreads();
    return slot.ld(0) != 0;
  }
};

}  // namespace chattn::cuda
