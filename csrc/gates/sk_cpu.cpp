// The selective kernel on the CPU: one pass over the branches in each operator.
//
// What the caller computes between two operators is small, so the end of the maps is still in the
// cache when the second one starts: there it begins.
#include "gates/sk_cpu.h"

#include <vector>

#include "engine/cpu/kernels.h"
#include "engine/cpu/schedule.h"

namespace chattn::cpu {
namespace {

template <class A>
A* at(void* base, index_t offset) {
  return static_cast<A*>(base) + offset;
}
template <class A>
const A* at(const void* base, index_t offset) {
  return base ? static_cast<const A*>(base) + offset : nullptr;
}

bool stream(const MapShape& map) { return map.bytes() >= Schedule::kStreamBytes; }

template <class A>
void squeeze(const SkSqueeze& p, const Parallel& parallel) {
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const A scale = A(1) / static_cast<A>(p.map.hw);
  for_channels(p.map, parallel, [&](index_t n, index_t c0, index_t c1) {
    A* sum = at<A>(p.pooled, n * p.map.c);
    pass.squeeze(p.map, p.x, n, c0, c1, sum, nullptr);
    for (index_t i = c0; i < c1; ++i) sum[i] *= scale;
  });
}

template <class A>
void select(const SkSelect& p, const Parallel& parallel) {
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const MatrixKernels& matrix = kernels().matrix(p.map.dtype);
  const index_t c = p.map.c, m = p.x.count;
  const bool past_caches = stream(p.map);
  for_channels(
      p.map, parallel,
      [&](index_t n, index_t c0, index_t c1) {
        A* gate = at<A>(p.gate, n * m * c);
        matrix.softmax(at<A>(p.logits, n * m * c + c0), gate + c0, m, c, c1 - c0);
        pass.rescale(p.map, p.x, n, c0, c1, gate, p.y, past_caches);
      },
      true);
}

template <class A>
void dot(const SkDot& p, const Parallel& parallel) {
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const MatrixKernels& matrix = kernels().matrix(p.map.dtype);
  const index_t c = p.map.c, m = p.x.count;
  for_channels(p.map, parallel, [&](index_t n, index_t c0, index_t c1) {
    A* ds = at<A>(p.dlogits, n * m * c);
    pass.dot(p.map, p.dy, p.x, n, c0, c1, ds, nullptr, nullptr);
    const index_t first = n * m * c + c0;
    matrix.softmax_backward(at<A>(p.gate, first), at<A>(p.dgate, first), ds + c0, m, c, c1 - c0);
  });
}

template <class A>
void gradient(const SkGradient& p, const Parallel& parallel) {
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const index_t c = p.map.c, m = p.dx.count;
  const A scale = A(1) / static_cast<A>(p.map.hw);
  const bool past_caches = stream(p.map);
  for_channels(
      p.map, parallel,
      [&](index_t n, index_t c0, index_t c1) {
        std::vector<A> dmean(static_cast<std::size_t>(c), A(0));
        if (const A* dpooled = at<A>(p.dpooled, n * c))
          for (index_t i = c0; i < c1; ++i) dmean[static_cast<std::size_t>(i)] = dpooled[i] * scale;
        pass.gradient(p.map, p.dy, nullptr, n, c0, c1, at<A>(p.gate, n * m * c), dmean.data(),
                      nullptr, nullptr, p.dx, past_caches);
      },
      true);
}

}  // namespace

template <>
void run(const SkSqueeze& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? squeeze<double>(p, parallel) : squeeze<float>(p, parallel);
}
template <>
void run(const SkSelect& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? select<double>(p, parallel) : select<float>(p, parallel);
}
template <>
void run(const SkDot& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? dot<double>(p, parallel) : dot<float>(p, parallel);
}
template <>
void run(const SkGradient& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? gradient<double>(p, parallel) : gradient<float>(p, parallel);
}

}  // namespace chattn::cpu
