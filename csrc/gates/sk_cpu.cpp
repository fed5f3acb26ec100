// The operators of the selective kernel on the CPU: one pass over the branches in each.
//
// What the caller computes between two operators is small, so the end of the maps is still in the
// cache when the second one starts: there it begins.
#include "gates/sk_cpu.h"

#include "gates/sk_passes_cpu.h"

namespace chattn::cpu {
namespace {

constexpr bool kBackwards = true;

// body(passes in the maps' accumulation type)
template <class Body>
void by_accumulator(const MapShape& map, int branches, Body&& body) {
  if (map.dtype == DType::f64) {
    body(SkPasses<double>{map, branches});
  } else {
    body(SkPasses<float>{map, branches});
  }
}

}  // namespace

template <>
void run(const SkSqueeze& p, const Parallel& parallel) {
  by_accumulator(p.map, p.x.count, [&](const auto& passes) {
    for_channels(p.map, parallel, [&](index_t n, index_t c0, index_t c1) {
      passes.squeeze(p.x, p.pooled, n, c0, c1);
    });
  });
}

template <>
void run(const SkSelect& p, const Parallel& parallel) {
  by_accumulator(p.map, p.x.count, [&](const auto& passes) {
    const auto body = [&](index_t n, index_t c0, index_t c1) {
      passes.select(p.x, p.logits, p.y, n, c0, c1);
    };
    for_channels(p.map, parallel, body, kBackwards);
  });
}

template <>
void run(const SkDot& p, const Parallel& parallel) {
  by_accumulator(p.map, p.x.count, [&](const auto& passes) {
    for_channels(p.map, parallel, [&](index_t n, index_t c0, index_t c1) {
      passes.dot(p.x, p.dy, p.logits, nullptr, p.dlogits, n, c0, c1);
    });
  });
}

template <>
void run(const SkGradient& p, const Parallel& parallel) {
  by_accumulator(p.map, p.dx.count, [&](const auto& passes) {
    const auto body = [&](index_t n, index_t c0, index_t c1) {
      passes.gradient(p.dy, p.logits, p.dpooled, p.dx, n, c0, c1);
    };
    for_channels(p.map, parallel, body, kBackwards);
  });
}

}  // namespace chattn::cpu
