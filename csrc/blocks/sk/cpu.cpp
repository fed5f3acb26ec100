// The operators of the selective kernel on the CPU: one pass over the branches in each.
//
// What the caller computes between two operators is small, so the end of the maps is still in the
// cache when the second one starts: there it begins.
#include "blocks/sk/cpu_passes.h"

namespace chattn::cpu {
namespace {

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
  by_accumulator(p.map, p.x.count,
                 [&](const auto& passes) { passes.squeeze(p.x, p.pooled, parallel); });
}

template <>
void run(const SkSelect& p, const Parallel& parallel) {
  by_accumulator(p.map, p.x.count,
                 [&](const auto& passes) { passes.select(p.x, p.logits, p.y, parallel); });
}

template <>
void run(const SkDot& p, const Parallel& parallel) {
  by_accumulator(p.map, p.x.count, [&](const auto& passes) {
    passes.dot(p.x, p.dy, p.logits, nullptr, p.dlogits, parallel);
  });
}

template <>
void run(const SkGradient& p, const Parallel& parallel) {
  by_accumulator(p.map, p.dx.count, [&](const auto& passes) {
    passes.gradient(p.dy, p.logits, p.dpooled, p.dx, parallel);
  });
}

}  // namespace chattn::cpu
