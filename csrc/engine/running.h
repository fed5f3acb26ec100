// Running statistics of a batch norm.
#pragma once
#include <cstdint>

#include "common/types.h"

namespace chattn {

// They follow those of the batch. Null ones are not there.
struct RunningStatistics {
  DType dtype = DType::f32;
  double momentum = 0;                        // the weight of the batch
  void *mean = nullptr, *variance = nullptr;  // (channels) of type dtype
  void* updates = nullptr;                    // their count, int64

  template <class Statistics, class V>
  static void arrays(Statistics& s, index_t channels, V&& v) {
    v.changed("running_mean", s.mean, channels * size_of(s.dtype));
    v.changed("running_var", s.variance, channels * size_of(s.dtype));
    v.changed("updates", s.updates, sizeof(std::int64_t));
  }
};

}  // namespace chattn
