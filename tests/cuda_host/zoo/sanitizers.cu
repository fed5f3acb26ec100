// Faults that the compiler's sanitizers find, not the runtime. ASAN, TSAN: the first line of their
// reports.
#include "cuda_host/zoo/zoo.h"

namespace chattn::zoo {
namespace {

CHATTN_KERNEL(kThreads) local_array_overflow(const float* in, float* out) {
  volatile float a[4] = {1, 2, 3, 4};
  const int t = local_thread();
  const int i = static_cast<int>(ld(in + t));
  // ASAN local_array_overflow: index 4 out of bounds
  st(out + t, a[i < 4 ? i : 4]);
}
ZOO(local_array_overflow, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) shift_too_far(const float* in, float* out) {
  const int t = local_thread();
  const int n = static_cast<int>(ld(in + t));
  // ASAN shift_too_far: shift
  st(out + t, static_cast<float>(1 << (n > 40 ? 40 : n)));
}
ZOO(shift_too_far, nullptr, .block = kThreads);

// Past the accessors, which kernels must not do.
CHATTN_KERNEL(kThreads) raw_pointer(const float* in, float* out) {
  const int t = local_thread();
  // ASAN raw_pointer: heap-buffer-overflow
  out[t] = in[kElements - 255 + t];
}
ZOO(raw_pointer, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) raw_race(const float*, float* out) {
  const int t = local_thread();
  out[t] = static_cast<float>(t);
  // TSAN raw_race: data race
  out[1024 + t] = out[t ^ 64];
}
ZOO(raw_race, nullptr, .block = kThreads);

}  // namespace
}  // namespace chattn::zoo
