// Running statistics as an operator's list of tensors.
#pragma once
#include <vector>

#include "engine/running.h"
#include "ops/tensor.h"

namespace chattn::ops {

// running: the mean and the variance that follow those of the batch, and the count of updates, as
// far as there are any. A list, because some of torch's tools know no optional tensor that is
// changed. They are changed where they lie: a dense copy would not do.
inline RunningStatistics running_statistics(std::vector<Tensor>& running, double momentum,
                                            index_t channels, const Tensor& x) {
  RunningStatistics found;
  found.momentum = momentum;
  STD_TORCH_CHECK(running.size() <= 3,
                  "chattn_cuda: running is a mean, a variance and perhaps a count");
  if (running.size() >= 2) {
    found.dtype = weight_dtype(running[0], x);
    for (int i = 0; i < 2; ++i) {
      check_like(running[i], x, running[0].scalar_type(), channels, "running");
      STD_TORCH_CHECK(running[i].is_contiguous(),
                      "chattn_cuda: running statistics must be contiguous");
    }
    found.mean = running[0].data_ptr();
    found.variance = running[1].data_ptr();
  }
  if (running.size() % 2 == 0) return found;
  check_like(running.back(), x, ScalarType::Long, 1, "updates");
  found.updates = running.back().data_ptr();
  return found;
}

}  // namespace chattn::ops
