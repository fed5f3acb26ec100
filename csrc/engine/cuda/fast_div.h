// Division of 31-bit numbers by a number known at launch: a multiplication and a shift.
#pragma once
#include <cstdint>

#include "common/macros.h"

namespace chattn {

struct FastDiv {
  std::uint32_t divisor = 1, multiplier = 0x80000000u, shift = 31;

  FastDiv() = default;
  // 2^s >= d and m = ceil(2^(31+s)/d) give floor(n/d) = (n*m) >> (31+s) for every n < 2^31.
  explicit FastDiv(std::uint32_t d) : divisor(d) {
    std::uint32_t s = 0;
    while ((std::uint64_t{1} << s) < d) ++s;
    shift = 31 + s;
    multiplier = static_cast<std::uint32_t>(((std::uint64_t{1} << shift) + d - 1) / d);
  }

  CHATTN_HD int quotient(int n) const {
    return static_cast<int>(
        (static_cast<std::uint64_t>(static_cast<std::uint32_t>(n)) * multiplier) >> shift);
  }
};

}  // namespace chattn
