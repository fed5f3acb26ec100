// Entry points of the CUDA implementation: the map's type selects the instantiation.
#include "gates/sk_cuda.h"

#include "gates/sk_plan.h"

namespace chattn::cuda {

template <class T>
Status sk_squeeze_as(const SkSqueeze& p, void* scratch, void* stream);
template <class T>
Status sk_select_as(const SkSelect& p, void* scratch, void* stream);
template <class T>
Status sk_dot_as(const SkDot& p, void* scratch, void* stream);
template <class T>
Status sk_gradient_as(const SkGradient& p, void* scratch, void* stream);

namespace {

// Planes and positions are counted in 31 bits inside a kernel; the map in 64.
Status check_size(const MapShape& map) {
  constexpr index_t kLimit = (index_t{1} << 31) - 256;
  if (map.hw < kLimit && map.planes() < kLimit) return Status{};
  return Status::error(
      "the CUDA kernels take fewer than 2^31 planes and positions; got N %lld, C %lld, HW %lld",
      static_cast<long long>(map.n), static_cast<long long>(map.c), static_cast<long long>(map.hw));
}

}  // namespace

template <>
index_t scratch_bytes(const SkSqueeze& p) {
  return sk_squeeze_partials(p.map, p.x) * acc_size(p.map.dtype);
}
template <>
index_t scratch_bytes(const SkSelect&) {
  return 0;
}
template <>
index_t scratch_bytes(const SkDot& p) {
  return sk_dot_partials(p.map, p.x) * acc_size(p.map.dtype);
}
template <>
index_t scratch_bytes(const SkGradient&) {
  return 0;
}

template <>
Status run(const SkSqueeze& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map));
  return by_type(p.map.dtype,
                 [&](auto t) { return sk_squeeze_as<decltype(t)>(p, scratch, stream); });
}
template <>
Status run(const SkSelect& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map));
  return by_type(p.map.dtype,
                 [&](auto t) { return sk_select_as<decltype(t)>(p, scratch, stream); });
}
template <>
Status run(const SkDot& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map));
  return by_type(p.map.dtype, [&](auto t) { return sk_dot_as<decltype(t)>(p, scratch, stream); });
}
template <>
Status run(const SkGradient& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map));
  return by_type(p.map.dtype,
                 [&](auto t) { return sk_gradient_as<decltype(t)>(p, scratch, stream); });
}

}  // namespace chattn::cuda
