#pragma once
#include "engine/cpu/parallel.h"
#include "gates/conv1d.h"

namespace chattn::cpu {

template <>
void run(const EcaForward& p, const Parallel& parallel);
template <>
void run(const EcaBackward& p, const Parallel& parallel);

}  // namespace chattn::cpu
