// The tail around an attention block: a batch norm before it, a residual and an activation behind
// it (engine/tail.h). Four calls, so that the gate between them may be that of any block:
//
//   squeeze   the batch norm's scale and shift, and the mean (N, C) of what the gate is computed of
//   apply     y
//   reduce    sums over planes, the gradient of the gate
//   gradient  that of x, of the residual and of the batch norm's parameters
//
// Parameters shared by the CPU and the CUDA implementation; see docs/design.md for the formulas.
#pragma once
#include "common/types.h"
#include "engine/map.h"
#include "engine/run.h"
#include "engine/running.h"
#include "engine/tail.h"

namespace chattn {

// Rows of C accumulators that belong to a batch norm.
enum TailRow : index_t { kTailScale, kTailShift, kTailMean, kTailDeviation, kTailRows };

struct BatchNorm {
  DType affine_dtype = DType::f32, statistics_dtype = DType::f32;
  const void *weight = nullptr, *bias = nullptr;    // (C) or null
  const void *mean = nullptr, *variance = nullptr;  // (C): running statistics; null: of the batch
  double eps = 1e-5;
  bool of_batch() const { return mean == nullptr; }

  template <class Options>
  void set(Options& options, DType type) {
    eps = options.number("eps", 1e-5);
    options.flag("of_batch");
    affine_dtype = statistics_dtype = type;
  }
};

// Arrays are dense; "acc" is acc_t of the map's type.
struct TailSqueeze {
  static constexpr const char* kName = "tail_squeeze";
  MapShape map;
  TailFunctions functions;  // the inner one alone
  BatchNorm norm;
  RunningStatistics running;  // that follow the batch's
  const void* x = nullptr;
  void* numbers = nullptr;   // (kTailRows, C) acc: scale, shift, mean, 1 / deviation
  void* variance = nullptr;  // (C) acc: the batch's, biased; null: running statistics
  void* means = nullptr;     // (N, C) acc: of x; null: not wanted
  void* pooled = nullptr;    // (N, C) acc: of inner(scale*x + shift); null: not wanted

  template <class Options>
  void set(Options& options) {
    functions.set(options);
    norm.set(options, map.dtype);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t c = p.map.c, planes = p.map.acc_bytes(p.map.planes());
    v.input("x", p.x, p.map.bytes());
    v.input("weight", p.norm.weight, c * size_of(p.norm.affine_dtype));
    v.input("bias", p.norm.bias, c * size_of(p.norm.affine_dtype));
    v.input("mean", p.norm.mean, c * size_of(p.norm.statistics_dtype));
    v.input("var", p.norm.variance, c * size_of(p.norm.statistics_dtype));
    RunningStatistics::arrays(p.running, c, v);
    v.output("numbers", p.numbers, p.map.acc_bytes(kTailRows * c));
    v.output("variance", p.variance, p.map.acc_bytes(c));
    v.output("means", p.means, planes);
    v.output("pooled", p.pooled, planes);
  }
};

struct TailApply {
  static constexpr const char* kName = "tail_apply";
  MapShape map;
  TailFunctions functions;
  const void* x = nullptr;
  const void* residual = nullptr;
  const void* numbers = nullptr;
  const void* gate = nullptr;  // (N, C) acc; null: 1
  void* y = nullptr;
  void* mask = nullptr;  // null: not wanted

  template <class Options>
  void set(Options& options) {
    functions.set(options);
    BatchNorm().set(options, map.dtype);  // others read it
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    v.input("x", p.x, p.map.bytes());
    v.input("residual", p.residual, p.map.bytes());
    v.input("numbers", p.numbers, p.map.acc_bytes(kTailRows * p.map.c));
    v.input("gate", p.gate, p.map.acc_bytes(p.map.planes()));
    v.output("y", p.y, p.map.bytes());
    v.output("mask", p.mask, dense_mask_bytes(p.map));
  }
};

struct TailReduce {
  static constexpr const char* kName = "tail_reduce";
  MapShape map;
  TailFunctions functions;
  TailMaps maps;
  const void* numbers = nullptr;
  const void* gate = nullptr;
  void* sums = nullptr;   // (N, tail_sums, C) acc
  void* dgate = nullptr;  // (N, C) acc; null: not wanted

  template <class Options>
  void set(Options& options) {
    functions.set(options);
    BatchNorm().set(options, map.dtype);  // others read it
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t planes = p.map.acc_bytes(p.map.planes());
    reads(p, v);
    v.output("sums", p.sums, planes * tail_sums(p.functions));
    v.output("dgate", p.dgate, planes);
  }
  // What both calls of the backward read.
  template <class Call, class V>
  static void reads(Call& p, V&& v) {
    v.input("dy", p.maps.dy, p.map.bytes());
    v.input("x", p.maps.x, p.map.bytes());
    v.input("residual", p.maps.residual, p.map.bytes());
    v.input("mask", p.maps.mask, dense_mask_bytes(p.map));
    v.input("numbers", p.numbers, p.map.acc_bytes(kTailRows * p.map.c));
    v.input("gate", p.gate, p.map.acc_bytes(p.map.planes()));
  }
};

struct TailGradient {
  static constexpr const char* kName = "tail_gradient";
  MapShape map;
  TailFunctions functions;
  TailMaps maps;
  BatchNorm norm;  // without its statistics: whether they are the batch's is `of_batch`
  bool of_batch = false;
  const void* numbers = nullptr;
  const void* gate = nullptr;
  const void* sums = nullptr;
  const void* means = nullptr;                // without an inner activation, with a gate
  const void* dpooled = nullptr;              // (N, C) acc; null: 0
  const void* lost = nullptr;                 // (2, C) acc, constant and slope; null: of `sums`
  void* dx = nullptr;                         // null: not wanted
  void* dresidual = nullptr;                  // null: not wanted
  void *dweight = nullptr, *dbias = nullptr;  // (C) affine type; null: not wanted

  template <class Options>
  void set(Options& options) {
    functions.set(options);
    norm.set(options, map.dtype);
    of_batch = options.flag("of_batch");
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t planes = p.map.acc_bytes(p.map.planes());
    const index_t affine = p.map.c * size_of(p.norm.affine_dtype);
    TailReduce::reads(p, v);
    v.input("sums", p.sums, planes * tail_sums(p.functions));
    v.input("means", p.means, planes);
    v.input("dpooled", p.dpooled, planes);
    v.input("lost", p.lost, p.map.acc_bytes(2 * p.map.c));
    v.output("dx", p.dx, p.map.bytes());
    v.output("dresidual", p.dresidual, p.map.bytes());
    v.output("dweight", p.dweight, affine);
    v.output("dbias", p.dbias, affine);
  }
};

CHATTN_CALL(TailSqueeze);
CHATTN_CALL(TailApply);
CHATTN_CALL(TailReduce);
CHATTN_CALL(TailGradient);

}  // namespace chattn
