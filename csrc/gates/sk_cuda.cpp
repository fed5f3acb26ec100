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
template <class T>
Status sk_forward_as(const SkForward& p, void* scratch, void* stream);
template <class T>
Status sk_backward_as(const SkBackward& p, void* scratch, void* stream);

namespace {

// Planes and positions are counted in 31 bits inside a kernel; the map in 64.
Status check_size(const MapShape& map) {
  constexpr index_t kLimit = (index_t{1} << 31) - 256;
  if (map.hw < kLimit && map.planes() < kLimit) return Status{};
  return Status::error(
      "the CUDA kernels take fewer than 2^31 planes and positions; got N %lld, C %lld, HW %lld",
      static_cast<long long>(map.n), static_cast<long long>(map.c), static_cast<long long>(map.hw));
}

// So are the network's numbers.
Status check_size(const MapShape& map, index_t m, index_t d) {
  CHATTN_TRY(check_size(map));
  constexpr index_t kLimit = (index_t{1} << 31) - 4096;  // loops step past the end by less
  if (m * map.planes() < kLimit && map.n * d < kLimit && m * map.c * d < kLimit) return Status{};
  return Status::error(
      "the CUDA kernels take fewer than 2^31 logits, hidden values and weights; got N %lld, C "
      "%lld, M %lld, d %lld",
      static_cast<long long>(map.n), static_cast<long long>(map.c), static_cast<long long>(m),
      static_cast<long long>(d));
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
index_t scratch_bytes(const SkForward& p) {
  const bool norms = p.norms.count > 0;
  const SkPlan plan = plan_sk(p.map, p.x, norms || p.x.prologue, p.network.d, false);
  return SkScratch::make(plan, p.map, p.x.count, p.network.d, norms, false).total *
         acc_size(p.map.dtype);
}
template <>
index_t scratch_bytes(const SkBackward& p) {
  const SkPlan plan = plan_sk(p.map, p.x, false, p.network.d, true);
  return SkScratch::make(plan, p.map, p.x.count, p.network.d, p.network.normalises(), true).total *
         acc_size(p.map.dtype);
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
template <>
Status run(const SkForward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.x.count, p.network.d));
  return by_type(p.map.dtype,
                 [&](auto t) { return sk_forward_as<decltype(t)>(p, scratch, stream); });
}
template <>
Status run(const SkBackward& p, void* scratch, void* stream) {
  CHATTN_TRY(check_size(p.map, p.x.count, p.network.d));
  return by_type(p.map.dtype,
                 [&](auto t) { return sk_backward_as<decltype(t)>(p, scratch, stream); });
}

}  // namespace chattn::cuda
