#pragma once
#include "engine/cuda/run.h"
#include "gates/select.h"

namespace chattn::cuda {

template <>
index_t scratch_bytes(const SkSqueeze& p);
template <>
index_t scratch_bytes(const SkSelect& p);
template <>
index_t scratch_bytes(const SkDot& p);
template <>
index_t scratch_bytes(const SkGradient& p);

// Two launches for each of the sums, one for each of the others.
template <>
Status run(const SkSqueeze& p, void* scratch, void* stream);
template <>
Status run(const SkSelect& p, void* scratch, void* stream);
template <>
Status run(const SkDot& p, void* scratch, void* stream);
template <>
Status run(const SkGradient& p, void* scratch, void* stream);

}  // namespace chattn::cuda
