// Runs the CPU kernels on torch's own threads.
#pragma once
#include "engine/cpu/parallel.h"
#include "engine/run.h"
#include "ops/tensor.h"

namespace chattn::ops {

struct CpuRunner {
  template <class Call>
  static void run(const Tensor&, const Call& p) {
    cpu::Parallel parallel;
    parallel.threads = static_cast<int>(torch::stable::get_num_threads());
    parallel.run = [](index_t begin, index_t end, index_t grain, const auto& body) {
      torch::stable::parallel_for(begin, end, grain, body);
    };
    cpu::run(p, parallel);
  }
};

}  // namespace chattn::ops
