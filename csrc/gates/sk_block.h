// The selective kernel with its usual network, in one call: the four operators of select.h and what
// lies between them. CPU only: there the calls between the passes cost as much as the passes.
#pragma once
#include "gates/select.h"

namespace chattn {

// logits = w_select act(norm(w_reduce p + b_reduce)) + b_select; act: ReLU or nothing. Arrays are
// dense, of accumulators; those that may be absent are null.
struct SkNetwork {
  enum class Norm { none, fixed, of_batch };  // by given statistics, or by those of the batch
  index_t d = 1;                              // hidden units
  Norm norm = Norm::none;
  double momentum = 0, eps = 0;
  bool relu = true;
  const void* w_reduce = nullptr;  // (d, C)
  const void* b_reduce = nullptr;
  const void* weight = nullptr;  // (d), of the norm
  const void* bias = nullptr;
  const void* w_select = nullptr;  // (M*C, d)
  const void* b_select = nullptr;
  index_t bytes(const MapShape& map, int m) const {
    return (m + 1) * map.c * d * acc_size(map.dtype);
  }
};

struct SkForward {
  static constexpr const char* kName = "sk_forward";
  MapShape map;
  Branches x;
  SkNetwork network;
  void* mean = nullptr;      // (d), of the norm: read where they are fixed, otherwise written
  void* variance = nullptr;  // (d), biased
  void *running_mean = nullptr, *running_variance = nullptr;  // (d) or null: to be updated
  void* pooled = nullptr;                                     // (N, C)
  void* hidden = nullptr;     // (N, d) before the norm, where there is one
  void* activated = nullptr;  // (N, d)
  void* logits = nullptr;     // (N, M, C)
  void* y = nullptr;
};

struct SkBackward {
  static constexpr const char* kName = "sk_backward";
  MapShape map;
  Branches x;
  SkNetwork network;
  const void* dy = nullptr;
  const void* dlogits = nullptr;  // (N, M, C) or null: beside what comes from y
  const void *mean = nullptr, *variance = nullptr, *pooled = nullptr, *hidden = nullptr;
  const void *activated = nullptr, *logits = nullptr;
  // Null where they are not wanted: the branches' together, the network's together.
  MutableBranches dx;
  void *dw_reduce = nullptr, *db_reduce = nullptr, *dweight = nullptr, *dbias = nullptr;
  void *dw_select = nullptr, *db_select = nullptr;
};

}  // namespace chattn
