// The passes of a selective kernel on the CPU: over the maps by all threads, or over one sample.
#pragma once
#include <memory>

#include "blocks/sk/params.h"
#include "engine/cpu/arrays.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/schedule.h"

namespace chattn::cpu {

template <class A>
struct SkPasses {
  MapShape map;
  int branches;
  const PassKernels& pass = kernels().pass(map.dtype);
  const MatrixKernels& matrix = kernels().matrix(map.dtype == DType::f64 ? map.dtype : DType::f32);
  bool stream = map.bytes() >= Schedule::kStreamBytes;

  void squeeze(const Branches& x, void* pooled, const Parallel& parallel) const {
    const SpanSums<A> sums(map, 1);
    for_regions(map, parallel, [&](const Region& r) {
      pass.squeeze(map, x, r, sums.at(r, at<A>(pooled, r.n * map.c)));
    });
    for_planes(map, parallel, sums.count(), [&](index_t n, index_t c0, index_t c1) {
      A* const sum = at<A>(pooled, n * map.c);
      sums.merge(n, c0, c1, 0, 1, sum);
      mean(sum, c0, c1);
    });
  }
  void squeeze_sample(const Branches& x, void* pooled, index_t n) const {
    A* const sum = at<A>(pooled, n * map.c);
    pass.squeeze(map, x, region(map, n, 0, map.c), sum);
    mean(sum, 0, map.c);
  }

  // From the end of the maps, which is what the cache holds.
  void select(const Branches& x, const void* logits, void* y, const Parallel& parallel) const {
    const auto gate = gates(logits, parallel);
    for_regions(
        map, parallel,
        [&](const Region& r) {
          pass.rescale(map, x, r, gate.get() + r.n * branches * map.c, y, stream);
        },
        true);
  }
  void select_sample(const Branches& x, const void* logits, void* y, index_t n) const {
    const auto gate = buffer(branches * map.c);
    softmax(logits, gate.get(), n, 0, map.c, n * branches * map.c);
    backwards(map, n, [&](const Region& r) { pass.rescale(map, x, r, gate.get(), y, stream); });
  }

  // With the gradient `given` of the logits, if any.
  void dot(const Branches& x, const void* dy, const void* logits, const void* given, void* dlogits,
           const Parallel& parallel) const {
    const index_t row = branches * map.c;
    const SpanSums<A> sums(map, branches);
    for_regions(map, parallel, [&](const Region& r) {
      pass.dot(map, dy, x, r, sums.at(r, at<A>(dlogits, r.n * row)));
    });
    const auto gate = gates(logits, parallel);
    for_planes(map, parallel, row_cost() + sums.count(), [&](index_t n, index_t c0, index_t c1) {
      A* const ds = at<A>(dlogits, n * row);
      sums.merge(n, c0, c1, 0, branches, ds);
      matrix.softmax_backward(gate.get() + n * row + c0, ds + c0, branches, map.c, c1 - c0);
      if (const A* more = at<A>(given, n * row))
        for (index_t m = 0; m < branches; ++m)
          for (index_t i = m * map.c + c0; i < m * map.c + c1; ++i) ds[i] += more[i];
    });
  }

  // dpooled: may be null. From the end of the maps.
  void gradient(const void* dy, const void* logits, const void* dpooled, const MutableBranches& dx,
                const Parallel& parallel) const {
    const auto gate = gates(logits, parallel), dmean = buffer(map.planes());
    const A scale = A(1) / static_cast<A>(map.hw);
    const A* d = at<A>(dpooled, 0);
    for (index_t i = 0; i < map.planes(); ++i) dmean.get()[i] = d ? d[i] * scale : A(0);
    for_regions(
        map, parallel,
        [&](const Region& r) {
          pass.gradient(map, dy, r, gate.get() + r.n * branches * map.c, dmean.get() + r.n * map.c,
                        dx, stream);
        },
        true);
  }

 private:
  static std::unique_ptr<A[]> buffer(index_t size) {
    return std::make_unique_for_overwrite<A[]>(static_cast<std::size_t>(size));
  }

  void mean(A* sum, index_t c0, index_t c1) const {
    const A scale = A(1) / static_cast<A>(map.hw);
    for (index_t i = c0; i < c1; ++i) sum[i] *= scale;
  }

  // An exponential counts for several additions.
  index_t row_cost() const { return 4 * branches; }

  // (N, M, C): the softmax over the branches.
  std::unique_ptr<A[]> gates(const void* logits, const Parallel& parallel) const {
    auto gate = buffer(map.n * branches * map.c);
    for_planes(map, parallel, row_cost(), [&](index_t n, index_t c0, index_t c1) {
      softmax(logits, gate.get(), n, c0, c1, 0);
    });
    return gate;
  }
  // `gate` starts at number `first` of the batch's gates.
  void softmax(const void* logits, A* gate, index_t n, index_t c0, index_t c1,
               index_t first) const {
    const index_t start = n * branches * map.c + c0;
    matrix.softmax(at<A>(logits, start), gate + start - first, branches, map.c, c1 - c0);
  }
};

}  // namespace chattn::cpu
