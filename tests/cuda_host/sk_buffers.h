// Which memory a call of the selective kernel may touch, as the runtime needs to know it.
#pragma once
#include "blocks/sk/params.h"
#include "cuda_host/hostcuda.h"

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

// ---- the whole block
inline void register_network(hostcuda::BufferScope& known, const SkNetwork& n, index_t c, int m) {
  const auto input = [&](const void* p, index_t count, DType type, const char* name) {
    if (p) known.input(p, static_cast<std::size_t>(count * size_of(type)), name);
  };
  input(n.reduce.w, n.d * c, n.reduce.dtype, "w_reduce");
  input(n.reduce.b, n.d, n.reduce.dtype, "b_reduce");
  input(n.select.w, m * c * n.d, n.select.dtype, "w_select");
  input(n.select.b, m * c, n.select.dtype, "b_select");
  input(n.weight, n.d, n.affine_dtype, "weight");
  input(n.bias, n.d, n.affine_dtype, "bias");
}

inline void register_buffers(hostcuda::BufferScope& known, const SkForward& p) {
  const SkNetwork& n = p.network;
  const auto size = [](index_t count, int bytes) {
    return static_cast<std::size_t>(count * bytes);
  };
  const std::size_t units = size(p.map.n * n.d, acc_size(p.map.dtype));
  const std::size_t numbers = size(n.d, acc_size(p.map.dtype));
  const std::size_t running = size(n.d, size_of(n.statistics_dtype));
  register_inputs(known, p.x, p.map);
  for (int q = 0; q < p.norms.count; ++q) {
    const SkBranchNorms::One& norm = p.norms.at[q];
    const index_t channels = p.x.count * p.map.c / p.norms.count;
    for (const void* t : {norm.weight, norm.bias, norm.mean, norm.variance})
      known.input(t, size(channels, size_of(norm.dtype)), "prologue");
  }
  register_network(known, n, p.map.c, p.x.count);
  if (n.mean) {
    known.input(n.mean, running, "mean");
    known.input(n.variance, running, "variance");
  }
  if (p.mean) {
    known.output(p.mean, numbers, "mean");
    known.output(p.variance, numbers, "variance");
  }
  if (p.running_mean) known.changed(p.running_mean, running, "running_mean");
  if (p.running_variance) known.changed(p.running_variance, running, "running_variance");
  if (p.updates) known.changed(p.updates, sizeof(std::int64_t), "updates");
  known.output(p.pooled, plane_bytes(p.map), "pooled");
  if (p.hidden) known.output(p.hidden, units, "hidden");
  known.output(p.activated, units, "activated");
  known.output(p.logits, plane_bytes(p.map, p.x.count), "logits");
  known.output(p.y, static_cast<std::size_t>(p.map.bytes()), "y");
}

inline void register_buffers(hostcuda::BufferScope& known, const SkBackward& p) {
  const SkNetwork& n = p.network;
  const index_t c = p.map.c, rows = p.x.count * c;
  const auto size = [](index_t count, DType type) {
    return static_cast<std::size_t>(count * size_of(type));
  };
  const std::size_t units = static_cast<std::size_t>(p.map.n * n.d * acc_size(p.map.dtype));
  const auto output = [&](void* q, index_t count, DType type, const char* name) {
    if (q) known.output(q, size(count, type), name);
  };
  register_inputs(known, p.x, p.map);
  register_network(known, n, c, p.x.count);
  if (n.mean) {
    known.input(n.mean, size(n.d, n.statistics_dtype), "mean");
    known.input(n.variance, size(n.d, n.statistics_dtype), "variance");
  }
  known.input(p.dy, static_cast<std::size_t>(p.map.bytes()), "dy");
  if (p.dlogits) known.input(p.dlogits, plane_bytes(p.map, p.x.count), "dlogits");
  known.input(p.pooled, plane_bytes(p.map), "pooled");
  if (p.hidden) known.input(p.hidden, units, "hidden");
  known.input(p.activated, units, "activated");
  known.input(p.logits, plane_bytes(p.map, p.x.count), "logits");
  if (p.dx.at[0])
    each_branch(p.dx, p.map, "dx", [&](void* q, std::size_t bytes, const char* name) {
      known.output(q, bytes, name);
    });
  output(p.dw_reduce, n.d * c, n.reduce.dtype, "dw_reduce");
  output(p.db_reduce, n.d, n.reduce.dtype, "db_reduce");
  output(p.dweight, n.d, n.affine_dtype, "dweight");
  output(p.dbias, n.d, n.affine_dtype, "dbias");
  output(p.dw_select, rows * n.d, n.select.dtype, "dw_select");
  output(p.db_select, rows, n.select.dtype, "db_select");
}

}  // namespace chattn
