// Registers the CUDA kernels, executed on the CPU, as operators of chattn_cuda_host.
#include "blocks/se/cuda.h"
#include "blocks/se/op.h"

#include "cuda_host/ops/host_runner.h"
#include "cuda_host/ops/se_buffers.h"

STABLE_TORCH_LIBRARY_FRAGMENT(chattn_cuda_host, m) {
  m.def(chattn::ops::kSeForwardSchema);
  m.def(chattn::ops::kSeBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(chattn_cuda_host, CPU, m) {
  chattn::ops::register_se<chattn::ops::HostRunner>(m);
}
