// Which memory a call of the selective kernel may touch, as the runtime needs to know it.
#pragma once
#include "cuda_host/hostcuda.h"
#include "gates/select.h"

namespace chattn {

// Neighbouring slices of one map are one buffer, which begins with the first of them.
template <class Void, class Add>
void each_branch(const BranchesOf<Void>& x, const MapShape& map, const char* name, Add&& add) {
  static const char* const kNames[2][kMaxBranches] = {{"x0", "x1", "x2", "x3"},
                                                      {"dx0", "dx1", "dx2", "dx3"}};
  const index_t runs = map.channels_last ? map.n * map.hw : map.n;
  const index_t run = map.elements() / runs * size_of(map.dtype);
  const index_t before_last = (runs - 1) * (run + x.gap * size_of(map.dtype));
  bool neighbours = x.gap != 0;
  for (int m = 1; m < x.count; ++m)
    neighbours = neighbours && reinterpret_cast<std::uintptr_t>(x.at[m]) ==
                                   reinterpret_cast<std::uintptr_t>(x.at[0]) +
                                       static_cast<std::uintptr_t>(m * run);
  if (neighbours) {
    add(x.at[0], static_cast<std::size_t>(before_last + x.count * run), name);
    return;
  }
  for (int m = 0; m < x.count; ++m)
    add(x.at[m], static_cast<std::size_t>(before_last + run), kNames[name[0] == 'd'][m]);
}

inline std::size_t plane_bytes(const MapShape& map, int each = 1) {
  return static_cast<std::size_t>(each * map.planes() * acc_size(map.dtype));
}

inline void register_inputs(hostcuda::BufferScope& known, const Branches& x, const MapShape& map) {
  each_branch(x, map, "x", [&](const void* p, std::size_t bytes, const char* name) {
    known.input(p, bytes, name);
  });
  if (x.prologue)
    known.input(x.prologue, static_cast<std::size_t>(2 * x.count * map.c * acc_size(map.dtype)),
                "prologue");
}

inline void register_buffers(hostcuda::BufferScope& known, const SkSqueeze& p) {
  register_inputs(known, p.x, p.map);
  known.output(p.pooled, plane_bytes(p.map), "pooled");
}

inline void register_buffers(hostcuda::BufferScope& known, const SkSelect& p) {
  register_inputs(known, p.x, p.map);
  known.input(p.logits, plane_bytes(p.map, p.x.count), "logits");
  known.output(p.y, static_cast<std::size_t>(p.map.bytes()), "y");
}

inline void register_buffers(hostcuda::BufferScope& known, const SkDot& p) {
  register_inputs(known, p.x, p.map);
  known.input(p.dy, static_cast<std::size_t>(p.map.bytes()), "dy");
  known.input(p.logits, plane_bytes(p.map, p.x.count), "logits");
  known.output(p.dlogits, plane_bytes(p.map, p.x.count), "dlogits");
}

inline void register_buffers(hostcuda::BufferScope& known, const SkGradient& p) {
  known.input(p.dy, static_cast<std::size_t>(p.map.bytes()), "dy");
  known.input(p.logits, plane_bytes(p.map, p.dx.count), "logits");
  if (p.dpooled) known.input(p.dpooled, plane_bytes(p.map), "dpooled");
  each_branch(p.dx, p.map, "dx",
              [&](void* q, std::size_t bytes, const char* name) { known.output(q, bytes, name); });
}

}  // namespace chattn
