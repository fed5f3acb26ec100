// The arrays of a call, which come untyped: accumulators, and small numbers of whatever type.
#pragma once
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/types.h"
#include "engine/map.h"
#include "engine/running.h"

namespace chattn::cpu {

template <class A>
A* at(void* base, index_t offset) {
  return base ? static_cast<A*>(base) + offset : nullptr;
}
template <class A>
const A* at(const void* base, index_t offset) {
  return base ? static_cast<const A*>(base) + offset : nullptr;
}

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

// The running statistics of channel k follow a batch's; variance: biased, of `count` numbers.
// Channel 0 counts the updates.
inline void follow(const RunningStatistics& running, index_t k, double mean, double variance,
                   double count) {
  const auto one = [&](void* p, double value) {
    if (p == nullptr) return;
    with_type(running.dtype, [&](auto* typed) {
      using T = std::remove_pointer_t<decltype(typed)>;
      T* const at = static_cast<T*>(p) + k;
      const double before = static_cast<double>(to_acc(*at));
      *at = from_acc<T>(static_cast<acc_t<T>>((1 - running.momentum) * before + value));
    });
  };
  one(running.mean, running.momentum * mean);
  one(running.variance, running.momentum * (count / (count - 1)) * variance);
  if (running.updates && k == 0) ++*static_cast<std::int64_t*>(running.updates);
}

}  // namespace chattn::cpu
