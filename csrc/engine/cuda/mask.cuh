// Masks: a bit per element of a map, in the order of its memory: element e has bit e % 8 of byte
// e / 8. That of V neighbouring elements, which start at a multiple of V, lies in one byte.
#pragma once
#include <cstdint>

#include "engine/map.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// The bits from element `at` on; 0 where there is no mask.
template <int V>
CHATTN_DEVICE unsigned load_bits(const std::uint8_t* mask, index_t at) {
  if (mask == nullptr) return 0;
  const unsigned byte = ld(mask + (at >> 3));
  return V >= 8 ? byte : byte >> (at & 7);
}

// Those of V elements from `at` on. The 8 / V neighbouring threads whose elements share a byte take
// part together.
template <int V>
CHATTN_DEVICE void store_bits(std::uint8_t* mask, index_t at, unsigned bits) {
  constexpr int kShare = V < 8 ? 8 / V : 1;
  if (mask == nullptr) return;
  if constexpr (kShare > 1) {
    const unsigned lane = threadIdx.x % kWarp;
    const unsigned together = ((1u << kShare) - 1) << (lane & ~(kShare - 1u));
    bits <<= at & 7;
    CHATTN_UNROLL
    for (int other = 1; other < kShare; other *= 2) bits |= __shfl_xor_sync(together, bits, other);
    if (lane % kShare != 0) return;
  }
  st(mask + (at >> 3), static_cast<std::uint8_t>(bits));
}

}  // namespace chattn::cuda
