// The selective kernel for direct.py; sizes, arrays and plan are those of problems.SkProblem.
#include "blocks/sk/plan.h"
#include "cuda_host/direct/direct.h"

namespace {

using namespace chattn;

// The branches: `count` arrays, or slices of the first one.
template <class Maps>
Maps branches_of(float* const* maps, const MapShape& map, int count, bool slices) {
  const index_t slice = map.channels_last ? map.c : map.c * map.hw;
  Maps b;
  b.count = count;
  b.gap = slices ? (count - 1) * slice : 0;
  for (int m = 0; m < count; ++m) b.at[m] = slices ? maps[0] + m * slice : maps[m];
  return b;
}

}  // namespace

DIRECT_API int direct_sk(int backward, const int* sizes, float* const* arrays, char* error,
                         std::size_t error_size) {
  const MapShape map = direct::map_of(sizes);
  const int count = sizes[4];
  const bool slices = sizes[5] != 0, to_mean = sizes[6] != 0, prologue = sizes[7] != 0;
  const float *dy = *arrays++, *dpooled = to_mean ? *arrays++ : nullptr, *logits = *arrays++;
  const int maps = slices ? 1 : count;
  Branches x = branches_of<Branches>(arrays, map, count, slices);
  float* const* out = arrays + maps;  // pooled, y, dlogits, dx
  if (prologue) {
    const float* numbers = *out++;
    if (!backward) x.prologue = numbers;
  }
  const MutableBranches dx = branches_of<MutableBranches>(out + 3, map, count, slices);
  return direct::reported(error, error_size, [&] {
    if (backward) {
      direct::launch(SkDot{map, x, dy, logits, out[2]});
      direct::launch(SkGradient{map, dy, logits, dpooled, dx});
    } else {
      direct::launch(SkSqueeze{map, x, out[0]});
      direct::launch(SkSelect{map, x, logits, out[1]});
    }
  });
}

DIRECT_API void direct_sk_plan(const int* sizes, int* out) {
  const MapShape map = direct::map_of(sizes);
  const index_t gap = sizes[5];
  const cuda::ReducePlan squeeze = cuda::plan_sk_reduce(map, sizes[7] ? sizes[4] : 1, gap);
  const cuda::ReducePlan dot = cuda::plan_sk_reduce(map, sizes[4], gap);
  const cuda::ApplyPlan apply = cuda::plan_sk_apply(map);
  *out++ = static_cast<int>(squeeze.kind);
  *out++ = squeeze.vec;
  *out++ = squeeze.warps_per_plane;
  *out++ = squeeze.splits;
  *out++ = squeeze.tile_planes;
  *out++ = dot.tile_planes;
  *out++ = apply.parts;
  *out++ = static_cast<int>(apply.channel_tiles);
}
