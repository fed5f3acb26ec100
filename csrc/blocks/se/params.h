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

  index_t bytes(index_t c) const {  // of the matrices
    return (direct ? 1 : 2) * c * rd * size_of(weight_dtype);
  }
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
};

CHATTN_CALL(SeForward);
CHATTN_CALL(SeBackward);

}  // namespace chattn
