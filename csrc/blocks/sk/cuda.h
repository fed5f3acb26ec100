#pragma once
#include "blocks/sk/network.h"
#include "engine/cuda/run.h"

namespace chattn::cuda {

template <>
index_t scratch_bytes(const SkSqueeze& p);
template <>
index_t scratch_bytes(const SkSelect& p);
template <>
index_t scratch_bytes(const SkDot& p);
template <>
index_t scratch_bytes(const SkGradient& p);
template <>
index_t scratch_bytes(const SkForward& p);
template <>
index_t scratch_bytes(const SkBackward& p);

// Two launches for each of the sums, one for each of the others.
template <>
Status run(const SkSqueeze& p, void* scratch, void* stream);
template <>
Status run(const SkSelect& p, void* scratch, void* stream);
template <>
Status run(const SkDot& p, void* scratch, void* stream);
template <>
Status run(const SkGradient& p, void* scratch, void* stream);

// Of the whole block 4 launches forward, and one more for the statistics of the batch and for norms
// in front of the branches; at most 7 backward.
template <>
Status run(const SkForward& p, void* scratch, void* stream);
template <>
Status run(const SkBackward& p, void* scratch, void* stream);

CHATTN_RUN_AS(SkSqueeze);
CHATTN_RUN_AS(SkSelect);
CHATTN_RUN_AS(SkDot);
CHATTN_RUN_AS(SkGradient);
CHATTN_RUN_AS(SkForward);
CHATTN_RUN_AS(SkBackward);

}  // namespace chattn::cuda
