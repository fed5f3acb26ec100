// Registers the CUDA kernels, executed on the CPU, as the operators of chattn_cuda_host.
//
// Checks, allocation, planner and launchers are those of a GPU; only the runner differs, which
// tells the runtime which memory belongs to which tensor.
#include "cuda_host/ops/se_buffers.h"
#include "gates/se_cuda.h"
#include "ops/se_op.h"

namespace chattn::ops {
namespace {

struct HostRunner {
  template <class Params>
  static void launch(const Tensor& x, const Params& p, const char* op,
                     Status (*kernels)(const Params&, void* scratch, void* stream)) {
    const index_t bytes = cuda::scratch_bytes(p);
    const Tensor scratch = new_tensor(x, {(bytes + 7) / 8}, ScalarType::Double);
    hostcuda::BufferScope known;
    register_buffers(known, p);
    known.scratch(scratch.data_ptr(), static_cast<std::size_t>(bytes), "scratch");
    check(kernels(p, scratch.data_ptr(), known.stream()), op);
    known.require_written(op);
  }
  static void run(const Tensor& x, const SeForward& p) {
    launch(x, p, "se_forward", cuda::se_forward);
  }
  static void run(const Tensor& x, const SeBackward& p) {
    launch(x, p, "se_backward", cuda::se_backward);
  }
};

}  // namespace
}  // namespace chattn::ops

STABLE_TORCH_LIBRARY(chattn_cuda_host, m) {
  m.def(chattn::ops::kSeForwardSchema);
  m.def(chattn::ops::kSeBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(chattn_cuda_host, CPU, m) {
  chattn::ops::register_se<chattn::ops::HostRunner>(m);
}
