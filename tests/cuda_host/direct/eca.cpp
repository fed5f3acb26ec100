// Efficient channel attention for direct.py; sizes, arrays and plan are those of
// problems.EcaProblem.
#include "blocks/eca/plan.h"
#include "cuda_host/direct/direct.h"

namespace {

chattn::ConvGate gate_of(const int* sizes) {
  chattn::ConvGate gate;
  gate.taps = sizes[4];
  gate.per_channel = sizes[5] != 0;
  gate.gate = static_cast<chattn::Act>(sizes[6]);
  gate.circular = sizes[7] != 0;
  return gate;
}

}  // namespace

DIRECT_API int direct_eca(int backward, const int* sizes, float* const* arrays, char* error,
                          std::size_t error_size) {
  using namespace chattn;
  const MapShape map = direct::map_of(sizes);
  const ConvGate gate = gate_of(sizes);
  const float *x = arrays[0], *dy = arrays[1], *weight = arrays[2];
  float* const* out = arrays + 3;  // y, pooled, gate, dx, dweight
  return direct::reported(error, error_size, [&] {
    if (backward)
      direct::launch(
          EcaBackward{map, gate, dy, nullptr, x, out[1], out[2], weight, out[3], out[4]});
    else
      direct::launch(EcaForward{map, gate, x, weight, out[0], out[1], out[2]});
  });
}

DIRECT_API void direct_eca_plan(const int* sizes, int* out) {
  using namespace chattn;
  const cuda::EcaPlan plan = cuda::plan_eca(direct::map_of(sizes), gate_of(sizes));
  *out++ = plan.stage.fits;
  *out++ = plan.stage.tiles;
  *out++ = static_cast<int>(plan.stage.cluster());
  *out++ = static_cast<int>(plan.reduce.kind);
  *out++ = plan.apply.samples;
  *out++ = plan.apply.parts;
  *out++ = plan.grad.splits;
  *out++ = plan.grad.tap_tiles;
}
