// Registers squeeze-and-excitation for CPU tensors and, where built, for CUDA tensors.
#include "gates/se_cpu.h"
#include "ops/se_op.h"
#if defined(CHATTN_WITH_CUDA)
#include "ops/cuda_runner.h"
#endif

namespace chattn::ops {
namespace {

cpu::Parallel torch_threads() {
  cpu::Parallel parallel;
  parallel.threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.run = [](index_t begin, index_t end, index_t grain, const auto& body) {
    torch::stable::parallel_for(begin, end, grain, body);
  };
  return parallel;
}

struct CpuRunner {
  static void run(const Tensor&, const SeForward& p) { cpu::se_forward(p, torch_threads()); }
  static void run(const Tensor&, const SeBackward& p) { cpu::se_backward(p, torch_threads()); }
};

}  // namespace
}  // namespace chattn::ops

STABLE_TORCH_LIBRARY(chattn_cuda, m) {
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
