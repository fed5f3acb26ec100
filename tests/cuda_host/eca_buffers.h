// Which memory a call of efficient channel attention may touch, as the runtime needs to know it.
#pragma once
#include "blocks/eca/params.h"
#include "cuda_host/hostcuda.h"

namespace chattn {

// Sizes in bytes of the arrays of one call.
struct EcaSizes {
  std::size_t map, planes, weight;

  EcaSizes(const MapShape& m, const ConvGate& g) {
    map = static_cast<std::size_t>(m.bytes());
    planes = static_cast<std::size_t>(m.planes() * acc_size(m.dtype));
    weight = static_cast<std::size_t>(g.weights(m.c) * size_of(g.weight_dtype));
  }
};

inline void register_buffers(hostcuda::BufferScope& known, const EcaForward& p) {
  const EcaSizes size(p.map, p.gate);
  known.input(p.x, size.map, "x");
  known.input(p.weight, size.weight, "weight");
  known.output(p.y, size.map, "y");
  known.output(p.pooled, size.planes, "pooled");
  known.output(p.scale, size.planes, "gate");
}

inline void register_buffers(hostcuda::BufferScope& known, const EcaBackward& p) {
  const EcaSizes size(p.map, p.gate);
  known.input(p.dy, size.map, "dy");
  if (p.dgate) known.input(p.dgate, size.planes, "dgate");
  known.input(p.x, size.map, "x");
  known.input(p.pooled, size.planes, "pooled");
  known.input(p.scale, size.planes, "gate");
  known.input(p.weight, size.weight, "weight");
  if (p.dx) known.output(p.dx, size.map, "dx");
  if (p.dweight) known.output(p.dweight, size.weight, "dweight");
}

}  // namespace chattn
