// Registers squeeze-and-excitation for CPU tensors and, where built, for CUDA tensors.
#include "blocks/se/op.h"

#include "blocks/se/cpu.h"
#include "ops/cpu_runner.h"
#if defined(CHATTN_WITH_CUDA)
#include "blocks/se/cuda.h"
#include "ops/cuda_runner.h"
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(chattn_cuda, m) {
  m.def(chattn::ops::kSeForwardSchema);
  m.def(chattn::ops::kSeBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(chattn_cuda, CPU, m) {
  chattn::ops::register_se<chattn::ops::CpuRunner>(m);
}

#if defined(CHATTN_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(chattn_cuda, CUDA, m) {
  chattn::ops::register_se<chattn::ops::CudaRunner>(m);
}
#endif
