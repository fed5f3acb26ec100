// Squeeze-and-excitation in float32 without torch: one kernel file instead of four, for the tests
// that build many changed copies of csrc/. Called by direct.py.
#include <cstdio>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda_host/ops/se_buffers.h"
#include "gates/se_plan.h"

#include "common/status.h"

namespace chattn::cuda {

// Instantiated in gates/se_cuda_f32.cu.
template <class T>
Status se_forward_as(const SeForward& p, void* scratch, void* stream);
template <class T>
Status se_backward_as(const SeBackward& p, void* scratch, void* stream);

namespace {

template <class Params>
void launch(const Params& p, bool backward, Status (*kernels)(const Params&, void*, void*)) {
  const char* op = backward ? "se_backward" : "se_forward";
  const auto scratch_size = static_cast<std::size_t>(
      SeScratch::make(plan_se(p.map, p.gate), p.map, p.gate, backward).total);
  std::vector<float> scratch(scratch_size + 4);
  hostcuda::BufferScope known;
  register_buffers(known, p);
  known.scratch(scratch.data(), sizeof(float) * scratch_size, "scratch");
  const Status status = kernels(p, scratch.data(), known.stream());
  if (!status.ok) throw hostcuda::LaunchError(status.text);
  known.require_written(op);
}

}  // namespace
}  // namespace chattn::cuda

namespace {

// N, C, HW, rd, activation, gate, add_maxpool, channels_last
std::pair<chattn::MapShape, chattn::MlpGate> problem(const int* sizes) {
  chattn::MapShape map;
  map.n = sizes[0];
  map.c = sizes[1];
  map.hw = sizes[2];
  map.channels_last = sizes[7] != 0;
  chattn::MlpGate gate;
  gate.rd = sizes[3];
  gate.act = static_cast<chattn::Act>(sizes[4]);
  gate.gate = static_cast<chattn::Act>(sizes[5]);
  gate.add_maxpool = sizes[6] != 0;
  return {map, gate};
}

}  // namespace

// The arrays are those of direct.Problem.shapes, in their order. Returns 0, or 1 with the error's
// text.
extern "C" __attribute__((visibility("default"))) int direct_se(int backward, const int* sizes,
                                                                float* const* arrays, char* error,
                                                                std::size_t error_size) {
  using namespace chattn;
  const auto [map, gate] = problem(sizes);
  const auto [x, dy, w1, b1, w2, b2] =
      std::tuple(arrays[0], arrays[1], arrays[2], arrays[3], arrays[4], arrays[5]);
  float* const* out = arrays + 6;  // y, pooled, peak, hidden, gate, dx, dw1, db1, dw2, db2
  float* const peak = gate.add_maxpool ? out[2] : nullptr;
  try {
    if (backward)
      cuda::launch(SeBackward{map, gate, dy, nullptr, x, out[1], peak, out[3], out[4], w1, w2,
                              out[5], out[6], out[7], out[8], out[9]},
                   true, cuda::se_backward_as<float>);
    else
      cuda::launch(SeForward{map, gate, x, w1, b1, w2, b2, out[0], out[1], peak, out[3], out[4]},
                   false, cuda::se_forward_as<float>);
  } catch (const hostcuda::LaunchError& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return 1;
  }
  return 0;
}

// In the order of direct.Plan.
extern "C" __attribute__((visibility("default"))) void direct_se_plan(const int* sizes, int* out) {
  using namespace chattn;
  const auto [map, gate] = problem(sizes);
  const cuda::SePlan plan = cuda::plan_se(map, gate);
  *out++ = static_cast<int>(plan.reduce.kind);
  *out++ = plan.reduce.vec;
  *out++ = plan.reduce.warps_per_plane;
  *out++ = plan.reduce.splits;
  *out++ = plan.contract.splits;
  *out++ = static_cast<int>(plan.contract.sample_tiles);
  *out++ = static_cast<int>(plan.contract.hidden_tiles);
  *out++ = plan.contract.wide;
  *out++ = plan.apply.samples;
  *out++ = plan.apply.parts;
}
