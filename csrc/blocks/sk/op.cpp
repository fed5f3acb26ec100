// Registers the selective kernel for CPU tensors and, where built, for CUDA tensors.
#include "blocks/sk/op.h"
#include "blocks/sk/network_op.h"

#include "blocks/sk/cpu.h"
#include "ops/cpu_runner.h"
#if defined(CHATTN_WITH_CUDA)
#include "blocks/sk/cuda.h"
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
