// Runs the CUDA launchers on the CPU: the runner of chattn_cuda_host (csrc/ops/register.h).
//
// Checks, allocation, planner and launchers are those of a GPU; only the runner differs, which
// tells the runtime which memory belongs to which tensor.
#pragma once
#include "cuda_host/buffers.h"
#include "engine/cuda/run.h"
#include "ops/tensor.h"

#define CHATTN_LIBRARY chattn_cuda_host
#define CHATTN_CPU_RUNNER HostRunner

namespace chattn::ops {

struct HostRunner {
  template <class Call>
  static void run(const Tensor& x, const Call& p) {
    const index_t bytes = cuda::scratch_bytes(p);
    const Tensor scratch = new_tensor(x, {(bytes + 7) / 8}, ScalarType::Double);
    hostcuda::BufferScope known;
    Call::arrays(p, hostcuda::Buffers(known));
    known.scratch(scratch.data_ptr(), static_cast<std::size_t>(bytes), "scratch");
    check(cuda::run(p, scratch.data_ptr(), known.stream()), Call::kName);
    known.require_written(Call::kName);
  }
};

}  // namespace chattn::ops
