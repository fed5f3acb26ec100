// The selective kernel: M branches, weighed by a softmax over them. Parameters of its operators;
// torch-free, for CPU and CUDA.
//
// The network between the mean and the logits is (N, d)-sized and may need statistics of the whole
// batch: it lies between the operators. The gate, the softmax of the logits, is computed by whoever
// needs it: that takes less than writing it and reading it.
#pragma once
#include "engine/map.h"
#include "engine/run.h"

namespace chattn {

// Arrays are dense; "acc" is acc_t of the maps' type. `map` is a branch's shape, and y's.
struct SkSqueeze {
  static constexpr const char* kName = "sk_squeeze";
  MapShape map;
  Branches x;
  void* pooled = nullptr;  // (N, C) acc, the mean of the branches' sum
};

struct SkSelect {
  static constexpr const char* kName = "sk_select";
  MapShape map;
  Branches x;
  const void* logits = nullptr;  // (N, M, C) acc
  void* y = nullptr;
};

struct SkDot {
  static constexpr const char* kName = "sk_dot";
  MapShape map;
  Branches x;
  const void* dy = nullptr;
  const void* logits = nullptr;  // (N, M, C) acc, of the forward
  void* dlogits = nullptr;       // (N, M, C) acc
};

struct SkGradient {
  static constexpr const char* kName = "sk_gradient";
  MapShape map;
  const void* dy = nullptr;
  const void* logits = nullptr;   // (N, M, C) acc, of the forward
  const void* dpooled = nullptr;  // (N, C) acc or null: zero
  MutableBranches dx;
};

// ---- with its usual network, in one call: the four operators above and what lies between them.
// There the calls between the passes cost as much as the passes.

// A layer's matrix and bias, of one type: the maps', or float32 beside 16-bit maps.
struct SkLayer {
  DType dtype = DType::f32;
  const void* w = nullptr;
  const void* b = nullptr;  // may be null
};

// logits = w_select act(norm(w_reduce p + b_reduce)) + b_select; act: ReLU or nothing. Arrays are
// dense; those that may be absent are null. The norm's have types of their own, as layers have.
struct SkNetwork {
  enum class Norm { none, fixed, of_batch };  // by given statistics, or by those of the batch
  index_t d = 1;                              // hidden units
  SkLayer reduce, select;                     // (d, C) and (M*C, d)
  Norm norm = Norm::none;
  double eps = 0;
  bool relu = true;
  DType affine_dtype = DType::f32, statistics_dtype = DType::f32;
  const void *weight = nullptr, *bias = nullptr;    // (d), of the norm
  const void *mean = nullptr, *variance = nullptr;  // (d), biased: null where they are to be found
  bool normalises() const { return norm != Norm::none; }
  index_t bytes(const MapShape& map, int m) const {
    return map.c * d * (size_of(reduce.dtype) + m * size_of(select.dtype));
  }
};

// Batch norms by running statistics in front of the branches, of which a ReLU follows: the prologue
// that they make is computed here. One of M*C channels, or M of C; each of one type.
struct SkBranchNorms {
  struct One {
    DType dtype = DType::f32;
    const void *weight = nullptr, *bias = nullptr, *mean = nullptr, *variance = nullptr;
  };
  int count = 0;  // none, 1 or M
  double eps = 0;
  One at[kMaxBranches];
};

struct SkForward {
  static constexpr const char* kName = "sk_forward";
  MapShape map;
  Branches x;
  SkBranchNorms norms;
  SkNetwork network;
  // Of the batch, where the norm takes them; the running ones and the count of updates, of the
  // type statistics_dtype and int64, may be null.
  void *mean = nullptr, *variance = nullptr;  // (d) acc, biased
  double momentum = 0;
  void *running_mean = nullptr, *running_variance = nullptr, *updates = nullptr;
  void* pooled = nullptr;     // (N, C) acc
  void* hidden = nullptr;     // (N, d) acc, before the norm, where there is one
  void* activated = nullptr;  // (N, d) acc
  void* logits = nullptr;     // (N, M, C) acc
  void* y = nullptr;
};

struct SkBackward {
  static constexpr const char* kName = "sk_backward";
  MapShape map;
  Branches x;
  SkNetwork network;  // with its statistics, whichever they are
  const void* dy = nullptr;
  const void* dlogits = nullptr;  // (N, M, C) acc or null: beside what comes from y
  const void *pooled = nullptr, *hidden = nullptr, *activated = nullptr, *logits = nullptr;
  // Null where they are not wanted: the branches' together, the others one by one. Of the types of
  // what they are the gradients of.
  MutableBranches dx;
  void *dw_reduce = nullptr, *db_reduce = nullptr, *dweight = nullptr, *dbias = nullptr;
  void *dw_select = nullptr, *db_select = nullptr;
};

CHATTN_CALL(SkSqueeze);
CHATTN_CALL(SkSelect);
CHATTN_CALL(SkDot);
CHATTN_CALL(SkGradient);
CHATTN_CALL(SkForward);
CHATTN_CALL(SkBackward);

}  // namespace chattn
