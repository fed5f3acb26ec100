// Kernels without a fault: no check may object, in any order of threads, and the results are known.
#include "cuda_host/zoo/zoo.h"
//
#include "common/device_grid.cuh"

namespace chattn::zoo {
namespace {

CHATTN_KERNEL(kThreads) tree_reduction(const float* in, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, ld(in + t));
  __syncthreads();
  for (int k = kThreads / 2; k > 0; k /= 2) {
    if (t < k) s.st(t, s.ld(t) + s.ld(t + k));
    __syncthreads();
  }
  st(out + global_thread(), s.ld(0));
}
ZOO(
    tree_reduction, [](int) { return 32640.f; }, .grid = 3, .block = kThreads,
    .shared_bytes = 1024);

CHATTN_KERNEL(kThreads) buffer_reuse(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  float sum = 0;
  for (int round = 0; round < 4; ++round) {
    s.st(t, static_cast<float>(t + round));
    __syncthreads();
    sum += s.ld(t ^ 37);
    __syncthreads();
  }
  st(out + t, sum);
}
ZOO(
    buffer_reuse, [](int i) { return static_cast<float>(4 * (i ^ 37) + 6); }, .block = kThreads,
    .shared_bytes = 1024);

CHATTN_KERNEL(kThreads) syncwarp_tail(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread(), lane = t % kWarp, base = t - lane;
  s.st(t, 1.f);
  __syncwarp();
  for (int k = 16; k > 0; k /= 2) {
    const float other = lane < k ? s.ld(base + lane + k) : 0.f;
    __syncwarp();
    s.st(t, s.ld(t) + other);
    __syncwarp();
  }
  st(out + t, s.ld(base));
}
ZOO(syncwarp_tail, [](int) { return 32.f; }, .block = kThreads, .shared_bytes = 1024);

// Order that passes on: the upper half of a warp waits for one lane, which waited for the lower.
CHATTN_KERNEL(kThreads) partial_syncwarps(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread(), lane = t % kWarp;
  if (lane < 16) {
    s.st(t, static_cast<float>(lane));
    __syncwarp(0x0000ffffu);
  }
  if (lane >= 15) __syncwarp(0xffff8000u);
  st(out + t, lane < 16 ? 0.f : s.ld(t - 16));
}
ZOO(
    partial_syncwarps, [](int i) { return static_cast<float>(i % 32 < 16 ? 0 : i % 16); },
    .block = kThreads, .shared_bytes = 1024);

CHATTN_KERNEL(kThreads) shuffles(const float*, float* out) {
  const int t = local_thread(), lane = t % kWarp;
  int wrong = 0;
  if (__shfl_sync(kFullMask, lane, 5) != 5) wrong += 1;
  if (__shfl_sync(kFullMask, lane, 3, 8) != lane / 8 * 8 + 3) wrong += 2;
  if (__shfl_xor_sync(kFullMask, lane, 9) != (lane ^ 9)) wrong += 4;
  if (__shfl_down_sync(kFullMask, lane, 4) != (lane + 4 < 32 ? lane + 4 : lane)) wrong += 8;
  if (__shfl_down_sync(kFullMask, lane, 3, 8) != (lane % 8 + 3 < 8 ? lane + 3 : lane)) wrong += 16;
  if (__shfl_up_sync(kFullMask, lane, 2) != (lane >= 2 ? lane - 2 : lane)) wrong += 32;
  if (__ballot_sync(kFullMask, lane % 2) != 0xaaaaaaaau) wrong += 64;
  if (__shfl_xor_sync(kFullMask, 1.5 * lane, 16) != 1.5 * (lane ^ 16)) wrong += 128;
  // Two halves, each with its own mask.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  if (__shfl_xor_sync(half, lane, 8) != (lane ^ 8)) wrong += 256;
  st(out + t, static_cast<float>(wrong));
}
ZOO(shuffles, [](int) { return 0.f; }, .block = kThreads);

CHATTN_KERNEL(kThreads) warp_reductions(const float*, float* out) {
  const int t = local_thread(), lane = t % kWarp;
  int wrong = 0;
  if (warp_sum(lane) != 496) wrong += 1;
  if (warp_sum(static_cast<double>(lane)) != 496.0) wrong += 2;
  if (warp_sum<8>(static_cast<float>(lane)) != static_cast<float>(lane / 8 * 64 + 28)) wrong += 4;
  if (warp_max(static_cast<float>(-lane)) != 0.f) wrong += 8;
  if (warp_max<4>(lane) != (lane | 3)) wrong += 16;
  if (warp_sum<2>(lane) != 4 * (lane / 2) + 1) wrong += 32;
  const float some_nan = lane == 7 ? bit_cast<float>(0x7fc00000u) : 1.f;
  const float largest = warp_max<16>(some_nan);
  if ((largest != largest) != (lane < 16)) wrong += 64;
  // The butterfly of the reductions is that of single shuffles.
  float a = 1.f / static_cast<float>(3 + lane), b = a;
  for (int o = 16; o > 0; o /= 2) b += __shfl_xor_sync(kFullMask, b, o);
  if (warp_sum(a) != b) wrong += 128;
  st(out + t, static_cast<float>(wrong));
}
ZOO(warp_reductions, [](int) { return 0.f; }, .block = kThreads);

CHATTN_KERNEL(kThreads) vectors(const float* in, float* out) {
  const Shared<float> s = shared<float>(16, 4 * kThreads);
  const int i = 4 * local_thread();
  s.stv<4>(i, load_vec<4>(in + i));
  const Vec<float, 2> pair = s.ldv<2>(i + 2);
  Vec<float, 4> v = load_stream<4>(in + i);
  v[2] += pair[0];
  v[3] += pair[1];
  store_stream(out + i, v);
}
ZOO(
    vectors, [](int i) { return static_cast<float>(i % 4 < 2 ? i : 2 * i); }, .block = kThreads,
    .shared_bytes = 16 + 4096);

// One element of each 32-byte sector.
CHATTN_KERNEL(kThreads) strided(const float* in, float* out) {
  const int t = local_thread();
  st(out + t, ld(in + 8 * t));
}
ZOO(strided, [](int i) { return static_cast<float>(8 * i); }, .block = kThreads);

CHATTN_KERNEL(kThreads) many_blocks(const float* in, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread(), i = global_thread();
  s.st(t, ld(in + i));
  __syncthreads();
  st(out + i, s.ld(kThreads - 1 - t));
}
ZOO(
    many_blocks, [](int i) { return static_cast<float>(i / kThreads * kThreads + 255 - i % 256); },
    .grid = 16, .block = kThreads, .shared_bytes = 1024);

CHATTN_KERNEL(64) three_dimensions(const float*, float* out) {
  const unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const auto i = static_cast<int>(b * blockDim.x * blockDim.y * blockDim.z + t);
  st(out + i, static_cast<float>(i));
}
ZOO(
    three_dimensions, [](int i) { return static_cast<float>(i); }, .grid = dim3(2, 3, 2),
    .block = dim3(4, 8, 2));

CHATTN_KERNEL(kThreads) integer_atomics(const float*, float* out) {
  const Shared<int> s = shared<int>(0, 1);
  const int t = local_thread();
  if (t == 0) s.st(0, 0);
  __syncthreads();
  s.atomic_add(0, t);
  __syncthreads();
  st(out + t, static_cast<float>(s.ld(0)));
}
ZOO(integer_atomics, [](int) { return 32640.f; }, .block = kThreads, .shared_bytes = 4);

CHATTN_KERNEL(kThreads) early_exit(const float*, float* out) {
  const int t = local_thread();
  st(out + t, 1.f);
  if (t >= 64) return;  // whole warps leave
  __syncthreads();
  const float sum = warp_sum(1.f);
  st(out + t, sum / 32);
}
ZOO(early_exit, [](int) { return 1.f; }, .block = kThreads);

CHATTN_KERNEL(kThreads) cluster_exchange(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  const unsigned rank = cluster_rank(), size = cluster_size();
  s.st(t, static_cast<float>(rank));
  cluster_sync();
  const float left = s.at_rank((rank + 1) % size).ld(t);
  cluster_sync_relaxed();
  st(out + global_thread(), left);
}
ZOO(
    cluster_exchange, [](int i) { return static_cast<float>((i / kThreads + 1) % 4); }, .grid = 8,
    .block = kThreads, .shared_bytes = 1024, .cluster = 4);

CHATTN_KERNEL(kThreads) cluster_of_one(const float*, float* out) {
  const Shared<float> s = shared<float>(0, kThreads);
  const int t = local_thread();
  s.st(t, static_cast<float>(t));
  cluster_sync();
  st(out + t, s.at_rank(cluster_rank()).ld(t ^ 1) + static_cast<float>(cluster_size()));
}
ZOO(
    cluster_of_one, [](int i) { return static_cast<float>((i ^ 1) + 1); }, .block = kThreads,
    .shared_bytes = 1024);

CHATTN_KERNEL(kThreads) grid_exchange(const float*, float* out) {
  const int i = global_thread(), n = static_cast<int>(gridDim.x * blockDim.x);
  st(out + i, static_cast<float>(i));
  grid_sync();
  const float other = ld(out + (i + kThreads) % n);
  grid_sync();
  st(out + i, other);
}
ZOO(
    grid_exchange, [](int i) { return static_cast<float>((i + kThreads) % (4 * kThreads)); },
    .grid = 4, .block = kThreads, .stream = nullptr, .cooperative = true);

// The last block to arrive reads what the others have stored.
CHATTN_KERNEL(kThreads) last_block(const float*, float* out) {
  const Shared<int> s = shared<int>(0, 1);
  const int t = local_thread(), blocks = static_cast<int>(gridDim.x);
  const auto counter = reinterpret_cast<unsigned*>(out + kElements - 1);
  if (blockIdx.x == 0 && t == 0) st(counter, 0u);
  grid_sync();
  st(out + global_thread(), static_cast<float>(global_thread()));
  __syncthreads();
  if (t == 0) {
    __threadfence();
    const bool last = atomic_add(counter, 1u) + 1 == gridDim.x;
    __threadfence();
    s.st(0, last);
  }
  __syncthreads();
  if (s.ld(0) == 0) return;
  for (int b = 0; b < blocks; ++b) {
    const int i = b * kThreads + t;
    st(out + i, ld(out + i) + 1);
  }
}
ZOO(
    last_block, [](int i) { return static_cast<float>(i + 1); }, .grid = 4, .block = kThreads,
    .shared_bytes = 4, .stream = nullptr, .cooperative = true);

CHATTN_KERNEL(kThreads) half_precision(const float* in, float* out) {
  const int t = local_thread();
  const half_t h = from_acc<half_t>(ld(in + t) / 16);
  const bfloat16_t b = from_acc<bfloat16_t>(ld(in + t));
  st(out + t, to_acc(h) * 16 + to_acc(b));
}
ZOO(half_precision, [](int i) { return static_cast<float>(2 * i); }, .block = kThreads);

CHATTN_KERNEL(kThreads) large_shared(const float*, float* out) {
  const Shared<float> s = shared<float>(0, 25 * 1024);
  const int t = local_thread();
  s.st(25 * 1024 - 1 - t, static_cast<float>(t));
  __syncthreads();
  st(out + t, s.ld(25 * 1024 - kThreads + t));
}
ZOO(
    large_shared, [](int i) { return static_cast<float>(kThreads - 1 - i); }, .block = kThreads,
    .shared_bytes = 100 * 1024);

}  // namespace
}  // namespace chattn::zoo
