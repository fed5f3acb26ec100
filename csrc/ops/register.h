// Registers operators. After `template <class Runner> ... se_forward(...)`, in the same namespace,
//
//   CHATTN_OPERATOR(se_forward, "(Tensor x, ...) -> Tensor y");
//
// defines it for CPU tensors and, where built, for CUDA tensors. What differs is the Runner:
// static run(const Tensor& x, const Call& p), with `x` for the device.
#pragma once
#include "ops/tensor.h"

#if defined(CHATTN_RUNNER)  // of the tests: another library, and what runs it
#include CHATTN_RUNNER
#else
#include "ops/cpu_runner.h"
#define CHATTN_LIBRARY chattn_cuda
#define CHATTN_CPU_RUNNER CpuRunner
#endif

#define CHATTN_IMPLEMENT(name, key, Runner)               \
  STABLE_TORCH_LIBRARY_IMPL(CHATTN_LIBRARY, key, m) {     \
    m.impl(#name, TORCH_BOX(&name<chattn::ops::Runner>)); \
  }

#if defined(CHATTN_WITH_CUDA)
#include "ops/cuda_runner.h"
#define CHATTN_IMPLEMENT_CUDA(name) CHATTN_IMPLEMENT(name, CUDA, CudaRunner)
#else
#define CHATTN_IMPLEMENT_CUDA(name)
#endif

#define CHATTN_OPERATOR(name, schema)                                       \
  STABLE_TORCH_LIBRARY_FRAGMENT(CHATTN_LIBRARY, m) { m.def(#name schema); } \
  CHATTN_IMPLEMENT(name, CPU, CHATTN_CPU_RUNNER)                            \
  CHATTN_IMPLEMENT_CUDA(name)                                               \
  static_assert(true)  // for the semicolon
