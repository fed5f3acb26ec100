// What surrounds an attention block in a network, as one function of a position's values:
//
//   y = act(gate * inner(scale*x + shift) + residual)
//
// scale and shift are those of a batch norm, gate that of any block. Passes over the maps x, dy and
// residual read these numbers and leave sums over planes.
#pragma once
#include "common/activation.h"
#include "engine/map.h"

namespace chattn {

struct TailFunctions {
  Act inner = Act::identity, act = Act::identity;
  double inner_param = 0, act_param = 0;

  template <class Options>
  void set(Options& options) {
    inner = static_cast<Act>(options.integer("inner", 0));
    inner_param = options.number("inner_param", 0);
    act = static_cast<Act>(options.integer("act", 0));
    act_param = options.number("act_param", 0);
  }

  // Whether the derivative of `act` is 0 or 1: one bit per position tells it.
  bool is_masked() const { return act == Act::relu || act == Act::relu6; }
  // Whether `act` is made of straight lines.
  bool is_straight() const { return act == Act::identity || act == Act::leaky_relu || is_masked(); }
};

// Maps to read; null ones are not there.
struct TailMaps {
  const void* x = nullptr;
  const void* residual = nullptr;
  const void* dy = nullptr;
  const void* mask = nullptr;  // the bits that the forward left
};

// In which rows the positions' bits of a map lie: each begins with a byte of its own.
struct MaskShape {
  index_t rows, pitch;  // pitch: bytes of a row

  explicit MaskShape(const MapShape& map)
      : rows(map.n * (map.channels_last ? map.hw : map.c)),
        pitch(((map.channels_last ? map.c : map.hw) + 7) / 8) {}
  index_t bytes() const { return rows * pitch; }
};

// Of which the CUDA kernels use the first: their bits are in the order of memory.
inline index_t dense_mask_bytes(const MapShape& map) { return (map.elements() + 7) / 8; }

// Accumulators per channel of a sample, each a row that is indexed by the channel.
//
//   dx = scale * inner' * (gate*g + dpooled) - constant - slope*(x - mean),   g = act' * dy
//
// The CPU's passes without an inner activation read neither gate nor dpooled, which are then parts
// of scale, shift and constant: dx = scale * g - constant - slope*(x - mean).
struct TailNumbers {
  const void *scale = nullptr, *shift = nullptr, *gate = nullptr;
  const void* mean = nullptr;  // of the channel
  const void *dpooled = nullptr, *constant = nullptr, *slope = nullptr;
};

// Sums over a plane: g and g*(x - mean); with an inner activation, w = inner(v):
// g*w, inner'*g, inner'*g*(x - mean), inner', inner'*(x - mean).
constexpr index_t tail_sums(const TailFunctions& f) { return f.inner == Act::identity ? 2 : 5; }

}  // namespace chattn
