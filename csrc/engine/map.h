// The feature map that every pass works on: (N, C, HW) in one of two dense layouts.
#pragma once
#include <cstdint>

#include "common/activation.h"
#include "common/types.h"

namespace chattn {

using index_t = std::int64_t;

struct MapShape {
  DType dtype = DType::f32;
  bool channels_last = false;  // memory order (N, HW, C) instead of (N, C, HW)
  index_t n = 0, c = 0, hw = 0;

  index_t planes() const { return n * c; }
  index_t elements() const { return n * c * hw; }
  index_t bytes() const { return elements() * size_of(dtype); }
  index_t acc_bytes(index_t count) const { return count * acc_size(dtype); }
};

constexpr int kMaxBranches = 4;

// M maps of one shape that share a pass. They are dense, or channel slices of one larger map: `gap`
// elements of the other slices then lie between a map's samples, or in channels_last between its
// positions. One pointer is a dense map.
template <class Pointer>
struct BranchesOf {
  Pointer at[kMaxBranches] = {};
  int count = 1;
  index_t gap = 0;

  BranchesOf() = default;
  BranchesOf(Pointer map) : at{map} {}  // NOLINT: meant to convert
};
using MutableBranches = BranchesOf<void*>;

// Maps to read. With a prologue, (2, M, C) accumulators scale and shift, a pass takes
// act(scale*x + shift) for x: a batch norm by running statistics and its activation.
struct Branches : BranchesOf<const void*> {
  const void* prologue = nullptr;
  Act act = Act::relu;
  double act_param = 0;

  using BranchesOf::BranchesOf;
};

}  // namespace chattn
