// The squeeze-and-excitation operators on CPU tensors, run by the CUDA kernels: the operator code, the
// launchers and the planner are the library's own.
#include <memory>
#include <mutex>

#include "cuda_host/hostcuda.h"
#include "gates/se_cuda.h"
#include "ops/se_op.h"

namespace chattn::ops {
namespace {

// Names every array of a call, so that accesses outside of them are faults and traffic is counted by
// name. Arrays that a call has not got are null.
class Buffers {
 public:
  void in(const void* p, index_t bytes, const char* name) {
    if (p) scope_.input(p, static_cast<std::size_t>(bytes), name);
  }
  void out(void* p, index_t bytes, const char* name) {
    if (p) scope_.output(p, static_cast<std::size_t>(bytes), name);
  }

 private:
  hostcuda::BufferScope scope_;
};

struct Sizes {
  index_t map, planes, hidden, weights, rd, c;  // bytes of each kind of array
  Sizes(const MapShape& m, const MlpGate& g) {
    const index_t acc = m.dtype == DType::f64 ? 8 : 4, w = size_of(g.weight_dtype);
    map = m.bytes();
    planes = m.planes() * acc;
    hidden = m.n * g.rd * acc;
    weights = g.rd * m.c * w;
    rd = g.rd * w;
    c = m.c * w;
  }
};

void name_buffers(Buffers& b, const SeForward& p) {
  const Sizes s(p.map, p.gate);
  b.in(p.x, s.map, "x");
  b.in(p.w1, s.weights, "w1");
  b.in(p.b1, s.rd, "b1");
  b.in(p.w2, s.weights, "w2");
  b.in(p.b2, s.c, "b2");
  b.out(p.y, s.map, "y");
  b.out(p.pooled, s.planes, "pooled");
  b.out(p.peak, s.planes, "peak");
  b.out(p.hidden, s.hidden, "hidden");
  b.out(p.scale, s.planes, "scale");
}

void name_buffers(Buffers& b, const SeBackward& p) {
  const Sizes s(p.map, p.gate);
  b.in(p.dy, s.map, "dy");
  b.in(p.dgate, s.planes, "dgate");
  b.in(p.x, s.map, "x");
  b.in(p.pooled, s.planes, "pooled");
  b.in(p.peak, s.planes, "peak");
  b.in(p.hidden, s.hidden, "hidden");
  b.in(p.scale, s.planes, "scale");
  b.in(p.w1, s.weights, "w1");
  b.in(p.w2, s.weights, "w2");
  b.out(p.dx, s.map, "dx");
  b.out(p.dw1, s.weights, "dw1");
  b.out(p.db1, s.rd, "db1");
  b.out(p.dw2, s.weights, "dw2");
  b.out(p.db2, s.c, "db2");
}

struct HostRunner {
  template <class Params>
  static void run_named(const Params& p, const char* op,
                        Status (*launch)(const Params&, void*, void*)) {
    // The runtime's options and counters are global.
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    Buffers buffers;
    name_buffers(buffers, p);
    const index_t bytes = cuda::scratch_bytes(p);
    const auto scratch = std::make_unique<double[]>(static_cast<std::size_t>((bytes + 7) / 8));
    buffers.out(scratch.get(), bytes, "scratch");
    check(launch(p, scratch.get(), nullptr), op);
  }
  static void run(const Tensor&, const SeForward& p) {
    run_named(p, "se_forward", cuda::se_forward);
  }
  static void run(const Tensor&, const SeBackward& p) {
    run_named(p, "se_backward", cuda::se_backward);
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
