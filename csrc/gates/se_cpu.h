#pragma once
#include "engine/cpu/parallel.h"
#include "gates/mlp.h"

namespace chattn::cpu {

void se_forward(const SeForward& p, const Parallel& parallel);
void se_backward(const SeBackward& p, const Parallel& parallel);

}  // namespace chattn::cpu
