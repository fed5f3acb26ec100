// Running statistics that follow those of a batch.
#pragma once
#include "engine/cuda/operands.cuh"
#include "engine/running.h"

namespace chattn::cuda {

template <class T>
struct RunningOut {
  using A = acc_t<T>;
  WeightsOut<T> mean, variance;
  long long* updates = nullptr;
  A momentum = 0;

  RunningOut() = default;
  explicit RunningOut(const RunningStatistics& r)
      : mean{r.mean, is_wide<T>(r.dtype)},
        variance{r.variance, is_wide<T>(r.dtype)},
        updates(static_cast<long long*>(r.updates)),
        momentum(static_cast<A>(r.momentum)) {}

  // Those of channel j; variance: biased, of `count` numbers. Channel 0 counts the updates.
  CHATTN_DEVICE void follow(int j, A of_mean, A of_variance, double count) const {
    follow(mean, j, of_mean);
    follow(variance, j, of_variance * static_cast<A>(count / (count - 1)));
    if (updates != nullptr && j == 0) st(updates, ld(updates) + 1);
  }

 private:
  CHATTN_DEVICE void follow(const WeightsOut<T>& running, int j, A value) const {
    if (running.p == nullptr) return;
    const A before = Weights<T>{running.p, running.wide}.at(j);
    running.put(j, (A(1) - momentum) * before + momentum * value);
  }
};

}  // namespace chattn::cuda
