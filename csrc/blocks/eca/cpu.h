#pragma once
#include "blocks/eca/params.h"
#include "engine/cpu/parallel.h"

namespace chattn::cpu {

template <>
void run(const EcaForward& p, const Parallel& parallel);
template <>
void run(const EcaBackward& p, const Parallel& parallel);

}  // namespace chattn::cpu
