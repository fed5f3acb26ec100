// Registers the CUDA kernels, executed on the CPU, as operators of chattn_cuda_host.
#include "blocks/eca/cuda.h"
#include "blocks/eca/op.h"

#include "cuda_host/ops/eca_buffers.h"
#include "cuda_host/ops/host_runner.h"

STABLE_TORCH_LIBRARY_FRAGMENT(chattn_cuda_host, m) {
  m.def(chattn::ops::kEcaForwardSchema);
  m.def(chattn::ops::kEcaBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(chattn_cuda_host, CPU, m) {
  chattn::ops::register_eca<chattn::ops::HostRunner>(m);
}
