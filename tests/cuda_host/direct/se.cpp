// Squeeze-and-excitation for direct.py; sizes, arrays and plan are those of problems.SeProblem.
#include "cuda_host/direct/direct.h"
#include "cuda_host/ops/se_buffers.h"
#include "gates/se_plan.h"

namespace chattn::cuda {

// Instantiated in gates/se_cuda_f32.cu.
template <class T>
Status se_forward_as(const SeForward& p, void* scratch, void* stream);
template <class T>
Status se_backward_as(const SeBackward& p, void* scratch, void* stream);

}  // namespace chattn::cuda

namespace {

chattn::MlpGate gate_of(const int* sizes) {
  chattn::MlpGate gate;
  gate.rd = sizes[4];
  gate.act = static_cast<chattn::Act>(sizes[5]);
  gate.gate = static_cast<chattn::Act>(sizes[6]);
  return gate;
}

}  // namespace

DIRECT_API int direct_se(int backward, const int* sizes, float* const* arrays, char* error,
                         std::size_t error_size) {
  using namespace chattn;
  const MapShape map = direct::map_of(sizes);
  const MlpGate gate = gate_of(sizes);
  const float *x = arrays[0], *dy = arrays[1], *w1 = arrays[2], *b1 = arrays[3], *w2 = arrays[4],
              *b2 = arrays[5];
  float* const* out = arrays + 6;  // y, pooled, hidden, gate, dx, dw1, db1, dw2, db2
  const index_t scratch =
      cuda::SeScratch::make(cuda::plan_se(map, gate), map, gate, backward != 0).total;
  return direct::reported(error, error_size, [&] {
    if (backward)
      direct::launch(SeBackward{map, gate, dy, nullptr, x, out[1], out[2], out[3], w1, w2, out[4],
                                out[5], out[6], out[7], out[8]},
                     scratch, cuda::se_backward_as<float>);
    else
      direct::launch(SeForward{map, gate, x, w1, b1, w2, b2, out[0], out[1], out[2], out[3]},
                     scratch, cuda::se_forward_as<float>);
  });
}

DIRECT_API void direct_se_plan(const int* sizes, int* out) {
  using namespace chattn;
  const cuda::SePlan plan = cuda::plan_se(direct::map_of(sizes), gate_of(sizes));
  *out++ = static_cast<int>(plan.reduce.kind);
  *out++ = plan.reduce.vec;
  *out++ = plan.reduce.warps_per_plane;
  *out++ = plan.reduce.splits;
  *out++ = plan.product.splits;
  *out++ = plan.product.samples;
  *out++ = static_cast<int>(plan.product.sample_tiles);
  *out++ = static_cast<int>(plan.product.output_tiles);
  *out++ = plan.apply.samples;
  *out++ = plan.apply.parts;
}
