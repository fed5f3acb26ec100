// How an operator reaches the code that runs it. A call is a struct of blocks/<block>/params.h,
// with its operator's name as kName, the shape of its maps as `map`, and its arrays, which
// arrays(call, v) tells by name and size: v.input("x", call.x, bytes), v.output, v.changed, and for
// branches v.inputs("x", call.x, map), v.outputs. Null pointers are arrays that are not there. For
// tests, set(options) fills in what is neither shape nor array, by name (engine/options.h).
//
// CHATTN_CALL, once beside each, declares what the block then defines for it:
//
//   cpu::run       in its cpu.cpp
//   cuda::run_as   in its .cu files, which are compiled once for each type of maps, as CHATTN_T
#pragma once
#include "common/status.h"
#include "common/types.h"

namespace chattn {

namespace cpu {

struct Parallel;

template <class Call>
void run(const Call& p, const Parallel& parallel);

}  // namespace cpu

namespace cuda {

// Launches on `stream`, with no synchronisation.
template <class T, class Call>
Status run_as(const Call& p, void* scratch, void* stream);

}  // namespace cuda

#define CHATTN_CALL(Call)                                                      \
  template <>                                                                  \
  void cpu::run(const Call& p, const cpu::Parallel& parallel);                 \
  template <>                                                                  \
  Status cuda::run_as<float>(const Call& p, void* scratch, void* stream);      \
  template <>                                                                  \
  Status cuda::run_as<half_t>(const Call& p, void* scratch, void* stream);     \
  template <>                                                                  \
  Status cuda::run_as<bfloat16_t>(const Call& p, void* scratch, void* stream); \
  template <>                                                                  \
  Status cuda::run_as<double>(const Call& p, void* scratch, void* stream)

}  // namespace chattn
