// Registers the CUDA kernels, executed on the CPU, as operators of chattn_cuda_host.
#include "blocks/sk/cuda.h"
#include "blocks/sk/network_op.h"

#include "cuda_host/ops/host_runner.h"
#include "cuda_host/ops/sk_buffers.h"

STABLE_TORCH_LIBRARY_FRAGMENT(chattn_cuda_host, m) {
  chattn::ops::define_sk(m);
  chattn::ops::define_sk_block(m);
}

STABLE_TORCH_LIBRARY_IMPL(chattn_cuda_host, CPU, m) {
  chattn::ops::register_sk<chattn::ops::HostRunner>(m);
  chattn::ops::register_sk_block<chattn::ops::HostRunner>(m);
}
