#pragma once
#include "engine/cpu/parallel.h"
#include "gates/mlp.h"

namespace chattn::cpu {

template <>
void run(const SeForward& p, const Parallel& parallel);
template <>
void run(const SeBackward& p, const Parallel& parallel);

}  // namespace chattn::cpu
