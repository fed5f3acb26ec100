// Which memory a squeeze-and-excitation call may touch, as the runtime needs to know it.
#pragma once
#include "blocks/se/params.h"
#include "cuda_host/hostcuda.h"

namespace chattn {

// Sizes in bytes of the arrays of one call.
struct SeSizes {
  std::size_t map, planes, hidden, row, column, matrix;

  SeSizes(const MapShape& m, const MlpGate& g) {
    const auto size = [](index_t elements, int bytes) {
      return static_cast<std::size_t>(elements * bytes);
    };
    const int acc = acc_size(m.dtype), weight = size_of(g.weight_dtype);
    map = static_cast<std::size_t>(m.bytes());
    planes = size(m.planes(), acc);
    hidden = size(m.n * g.rd, acc);
    row = size(g.rd, weight);
    column = size(m.c, weight);
    matrix = size(m.c * g.rd, weight);
  }
};

inline void register_buffers(hostcuda::BufferScope& known, const SeForward& p) {
  const SeSizes size(p.map, p.gate);
  known.input(p.x, size.map, "x");
  if (p.w1) known.input(p.w1, size.matrix, "w1");
  if (p.b1) known.input(p.b1, size.row, "b1");
  known.input(p.w2, size.matrix, "w2");
  if (p.b2) known.input(p.b2, size.column, "b2");
  known.output(p.y, size.map, "y");
  known.output(p.pooled, size.planes, "pooled");
  if (!p.gate.direct) known.output(p.hidden, size.hidden, "hidden");
  known.output(p.scale, size.planes, "gate");
}

inline void register_buffers(hostcuda::BufferScope& known, const SeBackward& p) {
  const SeSizes size(p.map, p.gate);
  known.input(p.dy, size.map, "dy");
  if (p.dgate) known.input(p.dgate, size.planes, "dgate");
  known.input(p.x, size.map, "x");
  known.input(p.pooled, size.planes, "pooled");
  if (!p.gate.direct) known.input(p.hidden, size.hidden, "hidden");
  known.input(p.scale, size.planes, "gate");
  if (p.w1) known.input(p.w1, size.matrix, "w1");
  known.input(p.w2, size.matrix, "w2");
  if (p.dx) known.output(p.dx, size.map, "dx");
  if (p.dw1) {
    known.output(p.dw1, size.matrix, "dw1");
    known.output(p.db1, size.row, "db1");
  }
  if (p.dw2) {
    known.output(p.dw2, size.matrix, "dw2");
    known.output(p.db2, size.column, "db2");
  }
}

}  // namespace chattn
