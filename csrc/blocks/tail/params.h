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
};

// Arrays are dense; "acc" is acc_t of the map's type.
struct TailSqueeze {
  static constexpr const char* kName = "tail_squeeze";
  MapShape map;
  TailFunctions functions;  // the inner one alone
  BatchNorm norm;
  const void* x = nullptr;
  void* numbers = nullptr;  // (kTailRows, C) acc: scale, shift, mean, 1 / deviation
  void* variance = nullptr;  // (C) acc: the batch's, biased; null: running statistics
  void* means = nullptr;    // (N, C) acc: of x; null: not wanted
  void* pooled = nullptr;   // (N, C) acc: of inner(scale*x + shift); null: not wanted
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
  const void* means = nullptr;    // without an inner activation, with a gate
  const void* dpooled = nullptr;  // (N, C) acc; null: 0
  void* dx = nullptr;             // null: not wanted
  void* dresidual = nullptr;      // null: not wanted
  void *dweight = nullptr, *dbias = nullptr;  // (C) affine type; null: not wanted
};

CHATTN_CALL(TailSqueeze);
CHATTN_CALL(TailApply);
CHATTN_CALL(TailReduce);
CHATTN_CALL(TailGradient);

}  // namespace chattn
