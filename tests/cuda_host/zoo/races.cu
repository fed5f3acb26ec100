// Memory used by two threads in no order. RACE: what the race check reports. Thread order, memory
// poison and ThreadSanitizer have their own chance at each of them.
#include "cuda_host/zoo/zoo.h"

namespace chattn::zoo {
namespace {

CHATTN_KERNEL(kThreads) never_written(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  if (t < 255) s.st(t, 1.f);
  __syncthreads();
  // FAULT never_written: load of shared memory that was never written, at byte 1020
  st(out + t, s.ld(255 - t));
}
ZOO(never_written, nullptr, .block = kThreads, .shared_bytes = 1024);

CHATTN_KERNEL(kThreads) output_never_written(const float*, float* out) {
  const int t = local_thread();
  st(out + t, 1.f);
  // FAULT output_never_written: load of 'out' at byte 2048, which nothing has written
  st(out + 256 + t, ld(out + 512 + t));
}
ZOO(output_never_written, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) missing_barrier(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 0.f);
  __syncthreads();
  s.st(t, static_cast<float>(t));
  // RACE missing_barrier: race on 'shared memory'
  st(out + t, s.ld(t ^ 128));
}
ZOO(missing_barrier, nullptr, .block = kThreads, .shared_bytes = 1024);

CHATTN_KERNEL(kThreads) missing_barrier_in_loop(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 1.f);
  __syncthreads();
  for (int k = kThreads / 2; k > 0; k /= 2) {
    // RACE missing_barrier_in_loop: race on 'shared memory'
    if (t < k) s.st(t, s.ld(t) + s.ld(t + k));
    if (k != 16) __syncthreads();
  }
  __syncthreads();
  st(out + t, s.ld(0));
}
ZOO(missing_barrier_in_loop, nullptr, .block = kThreads, .shared_bytes = 1024);

CHATTN_KERNEL(kThreads) reuse_without_barrier(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  float sum = 0;
  for (int round = 0; round < 4; ++round) {
    // RACE reuse_without_barrier: race on 'shared memory'
    s.st(t, static_cast<float>(t + round));
    __syncthreads();
    sum += s.ld(t ^ 37);
  }
  st(out + t, sum);
}
ZOO(reuse_without_barrier, nullptr, .block = kThreads, .shared_bytes = 1024);

// As before Volta, when the lanes of a warp moved together.
CHATTN_KERNEL(kThreads) missing_syncwarp(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 1.f);
  __syncthreads();
  if (t < kWarp) {
    for (int k = 16; k > 0; k /= 2) {
      // RACE missing_syncwarp: race on 'shared memory'
      const float other = t < k ? s.ld(t + k) : 0.f;
      // RACE missing_syncwarp: race on 'shared memory'
      s.st(t, s.ld(t) + other);
    }
  }
  __syncthreads();
  st(out + t, s.ld(0));
}
ZOO(missing_syncwarp, nullptr, .block = kThreads, .shared_bytes = 1024);

// A mask that names the own half of the warp, and a load from the other half.
CHATTN_KERNEL(kThreads) syncwarp_of_others(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, 1.f);
  __syncthreads();
  s.st(t, 2.f);
  __syncwarp(t % kWarp < 16 ? 0x0000ffffu : 0xffff0000u);
  // RACE syncwarp_of_others: race on 'shared memory'
  st(out + t, s.ld(t ^ 16));
}
ZOO(syncwarp_of_others, nullptr, .block = kThreads, .shared_bytes = 1024);

CHATTN_KERNEL(kThreads) shared_increment(const float*, float* out) {
  const Shared<float> s = shared<float>(0, 1);
  const int t = local_thread();
  if (t == 0) s.st(0, 0.f);
  __syncthreads();
  // RACE shared_increment: race on 'shared memory' at byte 0
  s.st(0, s.ld(0) + 1.f);
  __syncthreads();
  st(out + t, s.ld(0));
}
ZOO(shared_increment, nullptr, .block = kThreads, .shared_bytes = 4);

CHATTN_KERNEL(kThreads) atomic_and_plain(const float*, float* out) {
  const Shared<int> s = shared<int>(0, 1);
  const int t = local_thread();
  if (t == 0) s.st(0, 0);
  __syncthreads();
  const int before = s.atomic_add(0, 1);
  if (before == 255) st(out, 1.f);
  // RACE atomic_and_plain: race on 'shared memory'
  st(out + t, static_cast<float>(s.ld(0)));
}
ZOO(atomic_and_plain, nullptr, .block = kThreads, .shared_bytes = 4);

CHATTN_KERNEL(kThreads) blocks_write_same(const float*, float* out) {
  // RACE blocks_write_same: race on 'out' at byte 0: write after write
  st(out + local_thread(), 1.f);
}
ZOO(blocks_write_same, nullptr, .grid = 2, .block = kThreads);

CHATTN_KERNEL(kThreads) block_reads_other(const float*, float* out) {
  const int i = global_thread();
  st(out + i, static_cast<float>(i));
  __threadfence();
  st(out + 2048 + i,
     // RACE block_reads_other: race on 'out' at byte 0: read after write
     blockIdx.x == 1 ? ld(out + i - kThreads) : 0.f);
}
ZOO(block_reads_other, nullptr, .grid = 2, .block = kThreads);

CHATTN_KERNEL(kThreads) threads_share_global(const float*, float* out) {
  const int t = local_thread();
  st(out + t, 1.f);
  // RACE threads_share_global: race on 'out'
  st(out + 1024 + t, ld(out + (t ^ 32)));
}
ZOO(threads_share_global, nullptr, .block = kThreads);

// Ordered, but load_stream() may go through a cache that stores do not reach.
CHATTN_KERNEL(kThreads) stream_of_written(const float*, float* out) {
  const int t = local_thread();
  st(out + t, 1.f);
  __syncthreads();
  // RACE stream_of_written: load_stream of 'out' at byte 0, which this launch has written
  const Vec<float, 1> v = load_stream<1>(out + t);
  st(out + t, v[0]);
}
ZOO(stream_of_written, nullptr, .block = kThreads);

CHATTN_KERNEL(kThreads) written_after_stream(const float*, float* out) {
  const int t = local_thread();
  const Vec<float, 1> v = load_stream<1>(out + t);
  __syncthreads();
  // RACE written_after_stream: store to 'out' at byte 4, which this launch loads by load_stream
  st(out + (t ^ 1), v[0]);
}
ZOO(written_after_stream, nullptr, .block = kThreads);

}  // namespace
}  // namespace chattn::zoo
