// Accesses outside their array, or not aligned to their size.
#include "cuda_host/zoo/zoo.h"

namespace chattn::zoo {
namespace {

CHATTN_KERNEL(kThreads) load_past_end(const float* in, float* out) {
  const int t = local_thread();
  st(out + t,
     // FAULT load_past_end: out-of-bounds load of 4 bytes at byte 16384 of buffer 'in'
     ld(in + kElements - 255 + t));
}
ZOO(load_past_end, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) load_before_start(const float* in, float* out) {
  const int t = local_thread();
  st(out + t,
     // FAULT load_before_start: out-of-bounds load of 4 bytes at byte -4 of buffer 'in'
     ld(in + t - 1));
}
ZOO(load_before_start, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) store_past_end(const float*, float* out) {
  Vec<float, 4> v = {};
  // FAULT store_past_end: out-of-bounds store of 16 bytes at byte 16384 of buffer 'out'
  store_vec(out + kElements - 4 * 255 + 4 * local_thread(), v);
}
ZOO(store_past_end, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) store_to_input(const float* in, float*) {
  float* p = const_cast<float*>(in);
  // FAULT store_to_input: store of 4 bytes to the read-only buffer 'in'
  st(p + local_thread(), 0.f);
}
ZOO(store_to_input, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) wild_pointer(const float* in, float* out) {
  const float* p = in + (std::ptrdiff_t{1} << 40);
  // FAULT wild_pointer: out-of-bounds load of 4 bytes, far from any buffer
  st(out + local_thread(), ld(p));
}
ZOO(wild_pointer, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) misaligned_load(const float* in, float* out) {
  const int t = local_thread();
  // FAULT misaligned_load: misaligned global load of 16 bytes
  const Vec<float, 4> v = load_vec<4>(in + 4 * t + 1);
  st(out + t, v[0]);
}
ZOO(misaligned_load, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) misaligned_store(const float*, float* out) {
  const Vec<float, 2> v = {};
  // FAULT misaligned_store: misaligned global store of 8 bytes
  store_stream(out + 2 * local_thread() + 1, v);
}
ZOO(misaligned_store, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) misaligned_shared(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads + 4);
  const Vec<float, 4> v = {};
  // FAULT misaligned_shared: misaligned shared store of 16 bytes at byte 4
  s.stv<4>(local_thread(), v);
  st(out + local_thread(), 0.f);
}
ZOO(misaligned_shared, nullptr, .block = kThreads, .shared_bytes = 2048);

CHATTN_KERNEL(kThreads) misaligned_array(const float*, float* out) {
  // FAULT misaligned_array: shared array at byte 2 is not aligned to its 4-byte elements
  const Shared<float> s = shared<float>(2, 16);
  st(out + local_thread(), static_cast<float>(s.count));
}
ZOO(misaligned_array, nullptr, .block = kThreads, .shared_bytes = 1024);

// Inside the launch's shared memory, but in the array of somebody else.
CHATTN_KERNEL(kThreads) shared_neighbour(const float*, float* out) {
  const Shared<float> a = shared<float>(0, kThreads);
  const Shared<float> b = shared<float>(sizeof(float) * kThreads, kThreads);
  const int t = local_thread();
  b.st(t, 0.f);
  // FAULT shared_neighbour: out-of-bounds shared store of element 256..256 in an array of 256
  a.st(t + 1, 1.f);
  st(out + t, 0.f);
}
ZOO(shared_neighbour, nullptr, .block = kThreads, .shared_bytes = 2048);

CHATTN_KERNEL(kThreads) shared_negative(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 0.f);
  __syncthreads();
  // FAULT shared_negative: out-of-bounds shared load of element -1..-1 in an array of 256
  st(out + t, s.ld(t - 1));
}
ZOO(shared_negative, nullptr, .block = kThreads, .shared_bytes = 1024);

CHATTN_KERNEL(kThreads) shared_vector_tail(const float*, float* out) {
  const Shared<float> s = shared<float>(0, 4 * kThreads - 2);
  const Vec<float, 4> v = {};
  // FAULT shared_vector_tail: out-of-bounds shared store of elements 1020..1023 in an array of 1022
  s.stv<4>(4 * local_thread(), v);
  st(out + local_thread(), 0.f);
}
ZOO(shared_vector_tail, nullptr, .block = kThreads, .shared_bytes = 4096);

CHATTN_KERNEL(kThreads) array_too_large(const float*, float* out) {
  // FAULT array_too_large: shared array of 129 elements of 8 bytes at byte 1024 exceeds
  const Shared<double> s = shared<double>(1024, 129);
  st(out + local_thread(), static_cast<float>(s.count));
}
ZOO(array_too_large, nullptr, .block = kThreads, .shared_bytes = 2048);

}  // namespace
}  // namespace chattn::zoo
