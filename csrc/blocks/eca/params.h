// The gate of efficient channel attention: s = gate(w * p), a convolution over the channels of p,
// the mean of the map. Parameters shared by the CPU and the CUDA implementation.
#pragma once
#include "common/activation.h"
#include "common/types.h"
#include "engine/map.h"
#include "engine/run.h"

namespace chattn {

struct ConvGate {
  DType weight_dtype = DType::f32;
  index_t taps = 1;          // odd
  bool per_channel = false;  // every channel has taps of its own
  bool circular = false;     // channels beyond an end are those at the other end, not zeros
  Act gate = Act::sigmoid;

  index_t reach() const { return taps / 2; }  // channels to either side that a gate depends on
  index_t weights(index_t c) const { return per_channel ? c * taps : taps; }
  index_t bytes(index_t c) const { return weights(c) * size_of(weight_dtype); }

  // By name, with weights of the map's type. Options: engine/options.h.
  template <class Options>
  void set(const MapShape& map, Options& options) {
    taps = options.integer("k");
    options.require(taps >= 1 && taps % 2 == 1, "k must be positive and odd");
    per_channel = options.flag("per_channel");
    circular = options.flag("circular");
    weight_dtype = map.dtype;
  }
};

// Where a channel in [-c, 2c) is found; negative: it counts as zero.
CHATTN_HD int wrapped_channel(int channel, int c, bool circular) {
  if (channel >= 0 && channel < c) return channel;
  return !circular ? -1 : channel < 0 ? channel + c : channel - c;
}

// Arrays are dense; "acc" is acc_t of the map's type.
struct EcaForward {
  static constexpr const char* kName = "eca_forward";
  MapShape map;
  ConvGate gate;
  const void* x = nullptr;
  const void* weight = nullptr;  // (taps) or (C, taps), weight type
  void* y = nullptr;
  void* pooled = nullptr;  // (N, C) acc
  void* scale = nullptr;   // (N, C) acc, the gate's value

  template <class Options>
  void set(Options& options) {
    gate.set(map, options);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    v.input("x", p.x, p.map.bytes());
    v.input("weight", p.weight, p.gate.bytes(p.map.c));
    v.output("y", p.y, p.map.bytes());
    v.output("pooled", p.pooled, p.map.acc_bytes(p.map.planes()));
    v.output("gate", p.scale, p.map.acc_bytes(p.map.planes()));
  }
};

struct EcaBackward {
  static constexpr const char* kName = "eca_backward";
  MapShape map;
  ConvGate gate;
  const void* dy = nullptr;
  const void* dgate = nullptr;  // (N, C) acc or null: gradient of a gate that was returned
  const void* x = nullptr;
  const void *pooled = nullptr, *scale = nullptr;
  const void* weight = nullptr;
  void* dx = nullptr;       // null: not wanted
  void* dweight = nullptr;  // null: not wanted

  template <class Options>
  void set(Options& options) {
    gate.set(map, options);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t planes = p.map.acc_bytes(p.map.planes());
    v.input("dy", p.dy, p.map.bytes());
    v.input("dgate", p.dgate, planes);
    v.input("x", p.x, p.map.bytes());
    v.input("pooled", p.pooled, planes);
    v.input("gate", p.scale, planes);
    v.input("weight", p.weight, p.gate.bytes(p.map.c));
    v.output("dx", p.dx, p.map.bytes());
    v.output("dweight", p.dweight, p.gate.bytes(p.map.c));
  }
};

CHATTN_CALL(EcaForward);
CHATTN_CALL(EcaBackward);

}  // namespace chattn
