// The selective kernel with its network for direct.py; sizes, arrays and plan are those of
// problems.SkBlockProblem.
#include "blocks/sk/plan.h"
#include "cuda_host/direct/direct.h"

namespace {

using namespace chattn;
using Norm = SkNetwork::Norm;

SkNetwork network_of(const int* sizes) {
  SkNetwork n;
  n.d = sizes[5];
  n.norm = static_cast<Norm>(sizes[6]);
  n.eps = 1e-3;
  return n;
}

}  // namespace

DIRECT_API int direct_sk_block(int backward, const int* sizes, float* const* arrays, char* error,
                               std::size_t error_size) {
  const MapShape map = direct::map_of(sizes);
  SkNetwork n = network_of(sizes);
  const bool normalised = n.norm != Norm::none, of_batch = n.norm == Norm::of_batch;
  const float *dy = *arrays++, *dlogits = *arrays++;
  Branches x;
  x.count = sizes[4];
  for (int m = 0; m < x.count; ++m) x.at[m] = *arrays++;
  n.reduce.w = *arrays++;
  n.reduce.b = *arrays++;
  n.select.w = *arrays++;
  n.select.b = *arrays++;
  if (normalised) {
    n.weight = *arrays++;
    n.bias = *arrays++;
  }
  if (n.norm == Norm::fixed) {
    n.mean = *arrays++;
    n.variance = *arrays++;
  }
  float* const pooled = *arrays++;
  float* const hidden = normalised ? *arrays++ : nullptr;
  float* const mean = of_batch ? *arrays++ : nullptr;
  float* const variance = of_batch ? *arrays++ : nullptr;
  float *const activated = *arrays++, *const logits = *arrays++, *const y = *arrays++;
  return direct::reported(error, error_size, [&] {
    if (!backward) {
      SkForward p{};
      p.map = map;
      p.x = x;
      p.network = n;
      p.mean = mean;
      p.variance = variance;
      p.pooled = pooled;
      p.hidden = hidden;
      p.activated = activated;
      p.logits = logits;
      p.y = y;
      direct::launch(p);
      return;
    }
    SkBackward p{};
    p.map = map;
    p.x = x;
    p.network = n;
    p.dy = dy;
    p.dlogits = dlogits;
    p.pooled = pooled;
    p.hidden = hidden;
    p.activated = activated;
    p.logits = logits;
    if (of_batch) {
      p.network.mean = mean;
      p.network.variance = variance;
    }
    float* const* out = arrays;
    p.dx.count = x.count;
    for (int m = 0; m < x.count; ++m) p.dx.at[m] = *out++;
    p.dw_reduce = *out++;
    p.db_reduce = *out++;
    p.dw_select = *out++;
    p.db_select = *out++;
    if (normalised) {
      p.dweight = *out++;
      p.dbias = *out++;
    }
    direct::launch(p);
  });
}

DIRECT_API void direct_sk_block_plan(const int* sizes, int* out) {
  const MapShape map = direct::map_of(sizes);
  Branches x;
  x.count = sizes[4];
  for (const bool backward : {false, true}) {
    const cuda::SkPlan plan = cuda::plan_sk(map, x, false, sizes[5], backward);
    *out++ = plan.hidden.splits;
    *out++ = plan.second.splits;
  }
}
