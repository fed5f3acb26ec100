#pragma once
#include "blocks/eca/params.h"
#include "engine/cuda/run.h"

namespace chattn::cuda {

template <>
index_t scratch_bytes(const EcaForward& p);
template <>
index_t scratch_bytes(const EcaBackward& p);

// One launch forward or two, at most four backward.
template <>
Status run(const EcaForward& p, void* scratch, void* stream);
template <>
Status run(const EcaBackward& p, void* scratch, void* stream);

CHATTN_RUN_AS(EcaForward);
CHATTN_RUN_AS(EcaBackward);

}  // namespace chattn::cuda
