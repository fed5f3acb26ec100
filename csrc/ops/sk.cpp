// Registers the selective kernel for CPU tensors and, where built, for CUDA tensors.
#include "ops/sk_block_op.h"
#include "ops/sk_op.h"

#include "gates/sk_cpu.h"
#include "ops/cpu_runner.h"
#if defined(CHATTN_WITH_CUDA)
#include "gates/sk_cuda.h"
#include "ops/cuda_runner.h"
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(chattn_cuda, m) {
  chattn::ops::define_sk(m);
  chattn::ops::define_sk_block(m);
}

STABLE_TORCH_LIBRARY_IMPL(chattn_cuda, CPU, m) {
  chattn::ops::register_sk<chattn::ops::CpuRunner>(m);
  chattn::ops::register_sk_block<chattn::ops::CpuRunner>(m);
}

#if defined(CHATTN_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(chattn_cuda, CUDA, m) {
  chattn::ops::register_sk<chattn::ops::CudaRunner>(m);
  chattn::ops::register_sk_block<chattn::ops::CudaRunner>(m);
}
#endif
