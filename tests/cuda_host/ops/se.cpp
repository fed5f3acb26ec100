// Registers the CUDA kernels, executed on the CPU, as the operators of chattn_cuda_host.
//
// Checks, allocation, planner and launchers are those of a GPU; only the runner differs, which
// tells the runtime which memory belongs to which tensor.
#include "cuda_host/hostcuda.h"
#include "gates/se_cuda.h"
#include "ops/se_op.h"

namespace chattn::ops {
namespace {

// Sizes in bytes of the arrays of one call.
struct Sizes {
  std::size_t map, acc, planes, hidden, weight, matrix;

  Sizes(const MapShape& m, const MlpGate& g) {
    const auto size = [](index_t elements, int bytes) {
      return static_cast<std::size_t>(elements * bytes);
    };
    const int acc_bytes = m.dtype == DType::f64 ? 8 : 4;
    acc = static_cast<std::size_t>(acc_bytes);
    map = static_cast<std::size_t>(m.bytes());
    planes = size(m.planes(), acc_bytes);
    hidden = size(m.n * g.rd, acc_bytes);
    weight = static_cast<std::size_t>(size_of(g.weight_dtype));
    matrix = size(m.c * g.rd, size_of(g.weight_dtype));
  }
};

struct HostRunner {
  template <class Params>
  static void launch(const Tensor& x, const Params& p, const char* op, hostcuda::BufferScope& known,
                     Status (*kernels)(const Params&, void* scratch, void* stream)) {
    const index_t bytes = cuda::scratch_bytes(p);
    const Tensor scratch = new_tensor(x, {(bytes + 7) / 8}, ScalarType::Double);
    known.output(scratch.data_ptr(), static_cast<std::size_t>(bytes), "scratch");
    check(kernels(p, scratch.data_ptr(), nullptr), op);
  }

  static void run(const Tensor& x, const SeForward& p) {
    const Sizes size(p.map, p.gate);
    const auto c = static_cast<std::size_t>(p.map.c), rd = static_cast<std::size_t>(p.gate.rd);
    hostcuda::BufferScope known;
    known.input(p.x, size.map, "x");
    known.input(p.w1, size.matrix, "w1");
    if (p.b1) known.input(p.b1, rd * size.weight, "b1");
    known.input(p.w2, size.matrix, "w2");
    if (p.b2) known.input(p.b2, c * size.weight, "b2");
    known.output(p.y, size.map, "y");
    known.output(p.pooled, size.planes, "pooled");
    if (p.peak) known.output(p.peak, size.planes, "peak");
    known.output(p.hidden, size.hidden, "hidden");
    known.output(p.scale, size.planes, "gate");
    launch(x, p, "se_forward", known, cuda::se_forward);
  }

  static void run(const Tensor& x, const SeBackward& p) {
    const Sizes size(p.map, p.gate);
    const auto c = static_cast<std::size_t>(p.map.c), rd = static_cast<std::size_t>(p.gate.rd);
    hostcuda::BufferScope known;
    known.input(p.dy, size.map, "dy");
    if (p.dgate) known.input(p.dgate, size.planes, "dgate");
    known.input(p.x, size.map, "x");
    known.input(p.pooled, size.planes, "pooled");
    if (p.peak) known.input(p.peak, size.planes, "peak");
    known.input(p.hidden, size.hidden, "hidden");
    known.input(p.scale, size.planes, "gate");
    known.input(p.w1, size.matrix, "w1");
    known.input(p.w2, size.matrix, "w2");
    if (p.dx) known.output(p.dx, size.map, "dx");
    if (p.dw1) {
      known.output(p.dw1, size.matrix, "dw1");
      known.output(p.db1, rd * size.weight, "db1");
      known.output(p.dw2, size.matrix, "dw2");
      known.output(p.db2, c * size.weight, "db2");
    }
    launch(x, p, "se_backward", known, cuda::se_backward);
  }
};

}  // namespace
}  // namespace chattn::ops

STABLE_TORCH_LIBRARY(chattn_cuda_host, m)
{
  m.def(chattn::ops::kSeForwardSchema);
  m.def(chattn::ops::kSeBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(chattn_cuda_host, CPU, m)
{
  chattn::ops::register_se<chattn::ops::HostRunner>(m);
}
