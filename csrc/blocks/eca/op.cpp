// Registers efficient channel attention for CPU tensors and, where built, for CUDA tensors.
#include "blocks/eca/op.h"

#include "blocks/eca/cpu.h"
#include "ops/cpu_runner.h"
#if defined(CHATTN_WITH_CUDA)
#include "blocks/eca/cuda.h"
#include "ops/cuda_runner.h"
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(chattn_cuda, m) {
  m.def(chattn::ops::kEcaForwardSchema);
  m.def(chattn::ops::kEcaBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(chattn_cuda, CPU, m) {
  chattn::ops::register_eca<chattn::ops::CpuRunner>(m);
}

#if defined(CHATTN_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(chattn_cuda, CUDA, m) {
  chattn::ops::register_eca<chattn::ops::CudaRunner>(m);
}
#endif
