// The passes of the selective kernel that the whole block launches, too. In passes.cu.
#pragma once
#include "blocks/sk/params.h"
#include "common/status.h"
#include "common/types.h"
#include "engine/cuda/arrival.cuh"

namespace chattn::cuda {

// The sums of the branches, in parts: plan_sk_reduce(...).splits of (N, C). Clears the counters.
template <class T>
Status launch_squeeze(const MapShape& map, const Branches& x, acc_t<T>* sums,
                      const Arrivals& arrivals, void* stream);

// `given`: the gradient of the logits beside what comes from y, or null. Clears the counters.
template <class T>
Status launch_dot(const SkDot& p, const acc_t<T>* given, acc_t<T>* sums, const Arrivals& arrivals,
                  void* stream);

template <>
Status launch_squeeze<CHATTN_T>(const MapShape& map, const Branches& x, acc_t<CHATTN_T>* sums,
                                const Arrivals& arrivals, void* stream);
template <>
Status launch_dot<CHATTN_T>(const SkDot& p, const acc_t<CHATTN_T>* given, acc_t<CHATTN_T>* sums,
                            const Arrivals& arrivals, void* stream);

}  // namespace chattn::cuda
