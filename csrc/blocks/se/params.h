// The squeeze-and-excitation gate: s = gate(W2 act(W1 p + b1) + b2), p the pooled map.
// Parameters shared by the CPU and the CUDA implementation; see docs/design.md for the formulas.
#pragma once
#include "common/activation.h"
#include "common/types.h"
#include "engine/map.h"
#include "engine/run.h"

namespace chattn {

struct MlpGate {
  DType weight_dtype = DType::f32;
  index_t rd = 0;  // hidden channels
  Act act = Act::relu, gate = Act::sigmoid;
  double act_param = 0;
  bool direct = false;  // no first layer: s = gate(W2 p + b2); rd is C, and hidden is p

  index_t matrix_bytes(index_t c) const { return vector_bytes(c * rd); }
  index_t vector_bytes(index_t count) const { return count * size_of(weight_dtype); }
  // Of the matrices.
  index_t bytes(index_t c) const { return (direct ? 1 : 2) * matrix_bytes(c); }
  // By name, with weights of the map's type. Options: engine/options.h.
  template <class Options>
  void set(const MapShape& map, Options& options) {
    rd = options.integer("rd");
    options.require(rd >= 0, "rd must not be negative; 0: the gate has one layer");
    direct = rd == 0;
    if (direct) rd = map.c;
    act = static_cast<Act>(
        options.integer("act", static_cast<int>(direct ? Act::identity : Act::relu)));
    weight_dtype = map.dtype;
  }
  // What is kept of the first layer: of a gate without one, the mean.
  const char* hidden_name() const { return direct ? "pooled" : "hidden"; }
};

// Arrays are dense; "acc" is acc_t of the map's type.
struct SeForward {
  static constexpr const char* kName = "se_forward";
  MapShape map;
  MlpGate gate;
  const void* x = nullptr;
  const void* w1 = nullptr;  // (rd, C), weight type; null: direct
  const void* b1 = nullptr;  // (rd) or null
  const void* w2 = nullptr;  // (C, rd)
  const void* b2 = nullptr;  // (C) or null
  void* y = nullptr;
  void* pooled = nullptr;  // (N, C) acc
  void* hidden = nullptr;  // (N, rd) acc, before the activation; direct: pooled
  void* scale = nullptr;   // (N, C) acc, the gate's value

  template <class Options>
  void set(Options& options) {
    gate.set(map, options);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t c = p.map.c, rd = p.gate.rd, planes = p.map.acc_bytes(p.map.planes());
    v.input("x", p.x, p.map.bytes());
    v.input("w1", p.w1, p.gate.matrix_bytes(c));
    v.input("b1", p.b1, p.gate.vector_bytes(rd));
    v.input("w2", p.w2, p.gate.matrix_bytes(c));
    v.input("b2", p.b2, p.gate.vector_bytes(c));
    v.output("y", p.y, p.map.bytes());
    v.output("pooled", p.pooled, planes);
    v.output(p.gate.hidden_name(), p.hidden, p.map.acc_bytes(p.map.n * rd));
    v.output("gate", p.scale, planes);
  }
};

struct SeBackward {
  static constexpr const char* kName = "se_backward";
  MapShape map;
  MlpGate gate;
  const void* dy = nullptr;
  const void* dgate = nullptr;  // (N, C) acc or null: gradient of a gate that was returned
  const void* x = nullptr;
  const void *pooled = nullptr, *hidden = nullptr, *scale = nullptr;
  const void *w1 = nullptr, *w2 = nullptr;
  void* dx = nullptr;                   // null: not wanted
  void *dw1 = nullptr, *db1 = nullptr;  // all four null: not wanted; direct: these two are
  void *dw2 = nullptr, *db2 = nullptr;

  template <class Options>
  void set(Options& options) {
    gate.set(map, options);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t c = p.map.c, rd = p.gate.rd, planes = p.map.acc_bytes(p.map.planes());
    v.input("dy", p.dy, p.map.bytes());
    v.input("dgate", p.dgate, planes);
    v.input("x", p.x, p.map.bytes());
    v.input("pooled", p.pooled, planes);
    v.input(p.gate.hidden_name(), p.hidden, p.map.acc_bytes(p.map.n * rd));
    v.input("gate", p.scale, planes);
    v.input("w1", p.w1, p.gate.matrix_bytes(c));
    v.input("w2", p.w2, p.gate.matrix_bytes(c));
    v.output("dx", p.dx, p.map.bytes());
    v.output("dw1", p.dw1, p.gate.matrix_bytes(c));
    v.output("db1", p.db1, p.gate.vector_bytes(rd));
    v.output("dw2", p.dw2, p.gate.matrix_bytes(c));
    v.output("db2", p.db2, p.gate.vector_bytes(c));
  }
};

CHATTN_CALL(SeForward);
CHATTN_CALL(SeBackward);

}  // namespace chattn
