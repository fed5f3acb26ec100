#pragma once
#include "blocks/se/params.h"
#include "engine/cuda/run.h"

namespace chattn::cuda {

template <>
index_t scratch_bytes(const SeForward& p);
template <>
index_t scratch_bytes(const SeBackward& p);

// At most 3 launches forward and 4 backward.
template <>
Status run(const SeForward& p, void* scratch, void* stream);
template <>
Status run(const SeBackward& p, void* scratch, void* stream);

CHATTN_RUN_AS(SeForward);
CHATTN_RUN_AS(SeBackward);

}  // namespace chattn::cuda
