// The selective kernel: M branches, weighed by a softmax over them. Parameters of its operators;
// torch-free, for CPU and CUDA.
//
// The network between the mean and the logits is (N, d)-sized and may need statistics of the whole
// batch: it lies between the operators. The gate, the softmax of the logits, is computed by whoever
// needs it: that takes less than writing it and reading it.
#pragma once
#include "engine/map.h"

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

}  // namespace chattn
