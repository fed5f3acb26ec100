// Global response normalisation: s = g / (mean_c g + eps) with g the norm of a plane, and
// y = (1 + weight*s) x + bias. Parameters shared by the CPU and the CUDA implementation.
#pragma once
#include "common/types.h"
#include "engine/map.h"
#include "engine/run.h"

namespace chattn {

// Arrays are dense; "acc" is acc_t of the map's type.
struct GrnForward {
  static constexpr const char* kName = "grn_forward";
  MapShape map;
  DType weight_dtype = DType::f32;
  double eps = 1e-6;
  const void* x = nullptr;
  const void *weight = nullptr, *bias = nullptr;  // (C), weight type
  void* y = nullptr;
  void* norms = nullptr;  // (N, C) acc
  void* scale = nullptr;  // (N, C) acc, the gate s

  template <class Options>
  void set(Options& options) {
    eps = options.number("eps", 1e-6);
    weight_dtype = map.dtype;
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t planes = p.map.acc_bytes(p.map.planes());
    const index_t weights = p.map.c * size_of(p.weight_dtype);
    v.input("x", p.x, p.map.bytes());
    v.input("weight", p.weight, weights);
    v.input("bias", p.bias, weights);
    v.output("y", p.y, p.map.bytes());
    v.output("norms", p.norms, planes);
    v.output("gate", p.scale, planes);
  }
};

struct GrnBackward {
  static constexpr const char* kName = "grn_backward";
  MapShape map;
  DType weight_dtype = DType::f32;
  double eps = 1e-6;
  const void* dy = nullptr;
  const void* dgate = nullptr;  // (N, C) acc or null: gradient of a gate that was returned
  const void* x = nullptr;
  const void *norms = nullptr, *scale = nullptr;
  const void* weight = nullptr;
  void* dx = nullptr;                         // null: not wanted
  void *dweight = nullptr, *dbias = nullptr;  // null: not wanted

  template <class Options>
  void set(Options& options) {
    eps = options.number("eps", 1e-6);
    weight_dtype = map.dtype;
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t planes = p.map.acc_bytes(p.map.planes());
    const index_t weights = p.map.c * size_of(p.weight_dtype);
    v.input("dy", p.dy, p.map.bytes());
    v.input("dgate", p.dgate, planes);
    v.input("x", p.x, p.map.bytes());
    v.input("norms", p.norms, planes);
    v.input("gate", p.scale, planes);
    v.input("weight", p.weight, weights);
    v.output("dx", p.dx, p.map.bytes());
    v.output("dweight", p.dweight, weights);
    v.output("dbias", p.dbias, weights);
  }
};

CHATTN_CALL(GrnForward);
CHATTN_CALL(GrnBackward);

}  // namespace chattn
