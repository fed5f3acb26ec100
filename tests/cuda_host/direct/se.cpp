// Squeeze-and-excitation for direct.py; sizes, arrays and plan are those of problems.SeProblem.
#include "blocks/se/plan.h"
#include "cuda_host/direct/direct.h"

namespace {

chattn::MlpGate gate_of(const int* sizes) {
  chattn::MlpGate gate;
  gate.direct = sizes[4] == 0;
  gate.rd = gate.direct ? sizes[1] : sizes[4];
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
  const auto next = [&] { return *arrays++; };
  const auto of_two_layers = [&] { return gate.direct ? nullptr : next(); };
  const float *x = next(), *dy = next(), *w1 = of_two_layers(), *b1 = of_two_layers(), *w2 = next(),
              *b2 = next();
  float *y = next(), *pooled = next(), *hidden = gate.direct ? pooled : next(), *scale = next();
  float *dx = next(), *dw1 = of_two_layers(), *db1 = of_two_layers(), *dw2 = next(), *db2 = next();
  return direct::reported(error, error_size, [&] {
    if (backward)
      direct::launch(SeBackward{map, gate, dy, nullptr, x, pooled, hidden, scale, w1, w2, dx, dw1,
                                db1, dw2, db2});
    else
      direct::launch(SeForward{map, gate, x, w1, b1, w2, b2, y, pooled, hidden, scale});
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
