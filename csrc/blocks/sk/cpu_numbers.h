// The batch norms of a selective kernel on the CPU, as numbers.
#pragma once
#include <cmath>
#include <vector>

#include "blocks/sk/params.h"
#include "engine/cpu/arrays.h"

namespace chattn::cpu {

template <class A>
A inverse_deviation(A variance, double eps) {
  return A(1) / std::sqrt(variance + static_cast<A>(eps));
}

// Scale and shift (2, M, C) of batch norms in front of M branches of C channels.
template <class A>
std::vector<A> prologue_of(const SkBranchNorms& norms, int m, index_t c) {
  const index_t rows = m * c, each = rows / norms.count;
  std::vector<A> prologue(static_cast<std::size_t>(2 * rows));
  for (index_t q = 0; q < norms.count; ++q) {
    const SkBranchNorms::One& norm = norms.at[q];
    const auto weight = numbers<A>(norm.weight, norm.dtype, each, 1);
    const auto bias = numbers<A>(norm.bias, norm.dtype, each, 0);
    const auto mean = numbers<A>(norm.mean, norm.dtype, each, 0);
    const auto variance = numbers<A>(norm.variance, norm.dtype, each, 1);
    A* const out = prologue.data() + q * each;
    for (std::size_t i = 0; i < weight.size(); ++i) {
      out[i] = weight[i] * inverse_deviation(variance[i], norms.eps);
      out[i + static_cast<std::size_t>(rows)] = bias[i] - mean[i] * out[i];
    }
  }
  return prologue;
}

}  // namespace chattn::cpu
