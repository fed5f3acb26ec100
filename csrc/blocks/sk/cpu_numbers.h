// The small numbers of a selective kernel on the CPU, of whatever type, as accumulators.
#pragma once
#include <cmath>
#include <vector>

#include "blocks/sk/network.h"
#include "common/types.h"

namespace chattn::cpu {

// body(a null pointer to the type)
template <class Body>
auto with_type(DType type, Body&& body) {
  switch (type) {
    case DType::f64:
      return body(static_cast<double*>(nullptr));
    case DType::f16:
      return body(static_cast<half_t*>(nullptr));
    case DType::bf16:
      return body(static_cast<bfloat16_t*>(nullptr));
    default:
      return body(static_cast<float*>(nullptr));
  }
}

// `otherwise` where there are none.
template <class A>
std::vector<A> numbers(const void* p, DType type, index_t count, double otherwise) {
  std::vector<A> values(static_cast<std::size_t>(count), static_cast<A>(otherwise));
  if (p == nullptr) return values;
  with_type(type, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<A>(to_acc(static_cast<const T*>(p)[i]));
  });
  return values;
}

template <class A>
void put(void* p, DType type, index_t i, A value) {
  with_type(type, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    static_cast<T*>(p)[i] = from_acc<T>(static_cast<acc_t<T>>(value));
  });
}

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
