// What the kernels can count. Sizes are 64 bits wide outside of them.
#pragma once
#include <initializer_list>

#include "common/status.h"
#include "engine/map.h"

namespace chattn::cuda {

// A kernel counts in 31 bits, and its loops step past the end by less than this.
constexpr index_t kPastTheEnd = 4096;
constexpr index_t kCountLimit = (index_t{1} << 31) - kPastTheEnd;

struct Counted {
  const char* what;
  index_t count;
};

// Of every block the planes and positions, and what else it counts.
inline Status check_counts(const MapShape& map, std::initializer_list<Counted> more = {}) {
  const auto check = [&](const Counted& counted) {
    if (counted.count < kCountLimit) return Status{};
    return Status::error(
        "the CUDA kernels take fewer than %lld %s; got %lld (N %lld, C %lld, HW %lld)",
        static_cast<long long>(kCountLimit), counted.what, static_cast<long long>(counted.count),
        static_cast<long long>(map.n), static_cast<long long>(map.c),
        static_cast<long long>(map.hw));
  };
  CHATTN_TRY(check({"planes", map.planes()}));
  CHATTN_TRY(check({"positions", map.hw}));
  for (const Counted& counted : more) CHATTN_TRY(check(counted));
  return Status{};
}

}  // namespace chattn::cuda
