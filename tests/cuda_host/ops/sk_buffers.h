// Which memory a call of the selective kernel may touch, as the runtime needs to know it.
#pragma once
#include "cuda_host/hostcuda.h"
#include "gates/select.h"

namespace chattn {

// Slices of one map are one buffer, which begins with the first of them.
template <class Void, class Add>
void each_branch(const BranchesOf<Void>& x, const MapShape& map, const char* name, Add&& add) {
  static const char* const kNames[2][kMaxBranches] = {{"x0", "x1", "x2", "x3"},
                                                      {"dx0", "dx1", "dx2", "dx3"}};
  const auto bytes = static_cast<std::size_t>(map.bytes());
  if (x.gap != 0) {
    const index_t runs = map.channels_last ? map.n * map.hw : map.n;
    add(x.at[0], bytes + static_cast<std::size_t>(runs * x.gap * size_of(map.dtype)), name);
    return;
  }
  for (int m = 0; m < x.count; ++m) add(x.at[m], bytes, kNames[name[0] == 'd'][m]);
}

inline std::size_t plane_bytes(const MapShape& map, int each = 1) {
  return static_cast<std::size_t>(each * map.planes() * acc_size(map.dtype));
}

inline void register_inputs(hostcuda::BufferScope& known, const Branches& x, const MapShape& map) {
  each_branch(x, map, "x", [&](const void* p, std::size_t bytes, const char* name) {
    known.input(p, bytes, name);
  });
}

inline void register_buffers(hostcuda::BufferScope& known, const SkSqueeze& p) {
  register_inputs(known, p.x, p.map);
  known.output(p.pooled, plane_bytes(p.map), "pooled");
}

inline void register_buffers(hostcuda::BufferScope& known, const SkSelect& p) {
  register_inputs(known, p.x, p.map);
  known.input(p.logits, plane_bytes(p.map, p.x.count), "logits");
  known.output(p.y, static_cast<std::size_t>(p.map.bytes()), "y");
  known.output(p.gate, plane_bytes(p.map, p.x.count), "gate");
}

inline void register_buffers(hostcuda::BufferScope& known, const SkDot& p) {
  register_inputs(known, p.x, p.map);
  known.input(p.dy, static_cast<std::size_t>(p.map.bytes()), "dy");
  if (p.dgate) known.input(p.dgate, plane_bytes(p.map, p.x.count), "dgate");
  known.input(p.gate, plane_bytes(p.map, p.x.count), "gate");
  known.output(p.dlogits, plane_bytes(p.map, p.x.count), "dlogits");
}

inline void register_buffers(hostcuda::BufferScope& known, const SkGradient& p) {
  known.input(p.dy, static_cast<std::size_t>(p.map.bytes()), "dy");
  known.input(p.gate, plane_bytes(p.map, p.dx.count), "gate");
  if (p.dpooled) known.input(p.dpooled, plane_bytes(p.map), "dpooled");
  each_branch(p.dx, p.map, "dx", [&](void* q, std::size_t bytes, const char* name) {
    known.output(q, bytes, name);
  });
}

}  // namespace chattn
