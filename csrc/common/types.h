// Element types. 16-bit floats are storage only: every kernel computes in acc_t<T>.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/macros.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace chattn {

struct half_t {
  std::uint16_t bits;
};
struct bfloat16_t {
  std::uint16_t bits;
};

enum class DType : int { f32 = 0, f16 = 1, bf16 = 2, f64 = 3 };

// Sums, gates and saved intermediates: float32, or float64 where the map itself is float64.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<half_t> {
  static constexpr DType value = DType::f16;
};
template <>
struct dtype_of<bfloat16_t> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::f64;
};

constexpr int size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }
constexpr int acc_size(DType t) { return t == DType::f64 ? 8 : 4; }

template <class To, class From>
CHATTN_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

namespace detail {

// Host conversions, round to nearest even, written with integers so that no F16C is needed.
CHATTN_HD float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  std::uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u)  // Inf and NaN keep their payload
    return bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude < 0x400u) {  // zero and subnormal: value = magnitude * 2^-24, exact in float
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return bit_cast<float>(sign | bit_cast<std::uint32_t>(value));
  }
  return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

CHATTN_HD std::uint16_t float_to_half(float f) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(f);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded value in the low bits
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  magnitude += 0xc8000fffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | (magnitude >> 13));
}

CHATTN_HD std::uint16_t float_to_bfloat16(float f) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace detail

// ---- element <-> accumulator
CHATTN_HD float to_acc(float v) { return v; }
CHATTN_HD double to_acc(double v) { return v; }
CHATTN_HD float to_acc(bfloat16_t v) {
  return bit_cast<float>(static_cast<std::uint32_t>(v.bits) << 16);
}
CHATTN_HD float to_acc(half_t v) {
#if CHATTN_ON_DEVICE
  return __half2float(__ushort_as_half(v.bits));
#else
  return detail::half_to_float(v.bits);
#endif
}

template <class T>
CHATTN_HD T from_acc(acc_t<T> v) {
  if constexpr (std::is_same_v<T, half_t>) {
#if CHATTN_ON_DEVICE
    return half_t{__half_as_ushort(__float2half_rn(v))};
#else
    return half_t{detail::float_to_half(v)};
#endif
  } else if constexpr (std::is_same_v<T, bfloat16_t>) {
#if CHATTN_ON_DEVICE
    return bfloat16_t{__bfloat16_as_ushort(__float2bfloat16_rn(v))};
#else
    return bfloat16_t{detail::float_to_bfloat16(v)};
#endif
  } else {
    return v;
  }
}

}  // namespace chattn
