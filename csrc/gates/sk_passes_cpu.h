// The passes of a selective kernel on the CPU: each on one sample n and its channels [c0, c1).
#pragma once
#include <memory>

#include "engine/cpu/kernels.h"
#include "engine/cpu/schedule.h"
#include "gates/select.h"

namespace chattn::cpu {

template <class A>
A* at(void* base, index_t offset) {
  return static_cast<A*>(base) + offset;
}
template <class A>
const A* at(const void* base, index_t offset) {
  return base ? static_cast<const A*>(base) + offset : nullptr;
}

template <class A>
struct SkPasses {
  MapShape map;
  int branches;
  const PassKernels& pass = kernels().pass(map.dtype);
  const MatrixKernels& matrix = kernels().matrix(map.dtype == DType::f64 ? map.dtype : DType::f32);
  bool stream = map.bytes() >= Schedule::kStreamBytes;

  void squeeze(const Branches& x, void* pooled, index_t n, index_t c0, index_t c1) const {
    A* sum = at<A>(pooled, n * map.c);
    pass.squeeze(map, x, n, c0, c1, sum, nullptr);
    const A scale = A(1) / static_cast<A>(map.hw);
    for (index_t i = c0; i < c1; ++i) sum[i] *= scale;
  }

  void select(const Branches& x, const void* logits, void* y, index_t n, index_t c0,
              index_t c1) const {
    pass.rescale(map, x, n, c0, c1, gates(logits, n, c0, c1).get(), y, stream);
  }

  // With the gradient `given` of the logits, if any.
  void dot(const Branches& x, const void* dy, const void* logits, const void* given, void* dlogits,
           index_t n, index_t c0, index_t c1) const {
    const index_t first = n * branches * map.c;
    A* ds = at<A>(dlogits, first);
    pass.dot(map, dy, x, n, c0, c1, ds, nullptr, nullptr);
    matrix.softmax_backward(gates(logits, n, c0, c1).get() + c0, ds + c0, branches, map.c, c1 - c0);
    if (const A* more = at<A>(given, first))
      for (index_t m = 0; m < branches; ++m)
        for (index_t i = m * map.c + c0; i < m * map.c + c1; ++i) ds[i] += more[i];
  }

  // dpooled: may be null.
  void gradient(const void* dy, const void* logits, const void* dpooled, const MutableBranches& dx,
                index_t n, index_t c0, index_t c1) const {
    const auto dmean = std::make_unique<A[]>(static_cast<std::size_t>(map.c));
    const A scale = A(1) / static_cast<A>(map.hw);
    if (const A* d = at<A>(dpooled, n * map.c))
      for (index_t i = c0; i < c1; ++i) dmean[static_cast<std::size_t>(i)] = d[i] * scale;
    pass.gradient(map, dy, nullptr, n, c0, c1, gates(logits, n, c0, c1).get(), dmean.get(), nullptr,
                  nullptr, dx, stream);
  }

 private:
  // Rows of C: the softmax over the branches.
  std::unique_ptr<A[]> gates(const void* logits, index_t n, index_t c0, index_t c1) const {
    auto gate = std::make_unique_for_overwrite<A[]>(static_cast<std::size_t>(branches * map.c));
    matrix.softmax(at<A>(logits, n * branches * map.c + c0), gate.get() + c0, branches, map.c,
                   c1 - c0);
    return gate;
  }
};

}  // namespace chattn::cpu
