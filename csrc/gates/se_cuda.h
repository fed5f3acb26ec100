#pragma once
#include "common/status.h"
#include "gates/mlp.h"

namespace chattn::cuda {

// Bytes of scratch memory that the launch needs on the current device.
index_t scratch_bytes(const SeForward& p);
index_t scratch_bytes(const SeBackward& p);

// At most 3 launches forward and 4 backward, on `stream`, with no synchronisation.
Status se_forward(const SeForward& p, void* scratch, void* stream);
Status se_backward(const SeBackward& p, void* scratch, void* stream);

}  // namespace chattn::cuda
