// Runs the CUDA launchers on the CPU.
//
// Checks, allocation, planner and launchers are those of a GPU; only the runner differs, which
// tells the runtime which memory belongs to which tensor: a block's register_buffers().
#pragma once
#include "cuda_host/hostcuda.h"
#include "engine/cuda/run.h"
#include "ops/tensor.h"

namespace chattn::ops {

struct HostRunner {
  template <class Params>
  static void run(const Tensor& x, const Params& p) {
    const index_t bytes = cuda::scratch_bytes(p);
    const Tensor scratch = new_tensor(x, {(bytes + 7) / 8}, ScalarType::Double);
    hostcuda::BufferScope known;
    register_buffers(known, p);
    known.scratch(scratch.data_ptr(), static_cast<std::size_t>(bytes), "scratch");
    check(cuda::run(p, scratch.data_ptr(), known.stream()), Params::kName);
    known.require_written(Params::kName);
  }
};

}  // namespace chattn::ops
