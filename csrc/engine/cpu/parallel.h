// Threads come from the caller (torch's own pool), so that this library never makes any.
#pragma once
#include <functional>

#include "engine/map.h"

namespace chattn::cpu {

struct Parallel {
  int threads = 1;
  // Splits [begin, end) into ranges of at least `grain` and runs body(first, last) on each.
  std::function<void(index_t begin, index_t end, index_t grain,
                     const std::function<void(index_t, index_t)>& body)>
      run = [](index_t begin, index_t end, index_t, const auto& body) { body(begin, end); };
};

}  // namespace chattn::cpu
