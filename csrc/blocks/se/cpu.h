#pragma once
#include "blocks/se/params.h"
#include "engine/cpu/parallel.h"

namespace chattn::cpu {

template <>
void run(const SeForward& p, const Parallel& parallel);
template <>
void run(const SeBackward& p, const Parallel& parallel);

}  // namespace chattn::cpu
