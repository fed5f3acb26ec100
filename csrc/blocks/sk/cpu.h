#pragma once
#include "blocks/sk/network.h"
#include "blocks/sk/params.h"
#include "engine/cpu/parallel.h"

namespace chattn::cpu {

template <>
void run(const SkSqueeze& p, const Parallel& parallel);
template <>
void run(const SkSelect& p, const Parallel& parallel);
template <>
void run(const SkDot& p, const Parallel& parallel);
template <>
void run(const SkGradient& p, const Parallel& parallel);
template <>
void run(const SkForward& p, const Parallel& parallel);
template <>
void run(const SkBackward& p, const Parallel& parallel);

}  // namespace chattn::cpu
