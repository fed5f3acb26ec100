// Each kernel twice: with the device API and in plain CUDA. nvcc must make the same code of both.
#if defined(__CUDACC__)
#include "common/types.h"
//
#include "common/device.cuh"

namespace chattn::zoo {

extern "C" CHATTN_KERNEL(256) copy_api(const float* in, float* out, int n) {
  const int i = 4 * static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) store_vec(out + i, load_vec<4>(in + i));
}
extern "C" __global__ void __launch_bounds__(256) copy_raw(const float* in, float* out, int n) {
  const int i = 4 * static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) __stwb(reinterpret_cast<uint4*>(out + i), *reinterpret_cast<const uint4*>(in + i));
}

extern "C" CHATTN_KERNEL(256) reduce_api(const float* in, float* out) {
  const Shared<float> s = shared<float>(0, 8);
  const int t = static_cast<int>(threadIdx.x);
  const float sum = warp_sum(ld(in + t));
  if (t % 32 == 0) s.st(t / 32, sum);
  __syncthreads();
  if (t < 8) st(out + t, s.ld(7 - t));
}
extern "C" __global__ void __launch_bounds__(256) reduce_raw(const float* in, float* out) {
  extern __shared__ float4 memory[];
  float* const s = reinterpret_cast<float*>(memory);
  const int t = static_cast<int>(threadIdx.x);
  float sum = in[t];
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (t % 32 == 0) s[t / 32] = sum;
  __syncthreads();
  if (t < 8) out[t] = s[7 - t];
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
extern "C" CHATTN_KERNEL(256) cluster_api(float* out) {
  const Shared<float> s = shared<float>(0, 256);
  const int t = static_cast<int>(threadIdx.x);
  s.st(t, static_cast<float>(t));
  cluster_sync();
  st(out + t, s.at_rank(cluster_rank() ^ 1).ld(t));
  cluster_sync_relaxed();
}
extern "C" __global__ void __launch_bounds__(256) cluster_raw(float* out) {
  extern __shared__ float4 memory[];
  float* const s = reinterpret_cast<float*>(memory);
  const int t = static_cast<int>(threadIdx.x);
  s[t] = static_cast<float>(t);
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  const unsigned other = __clusterRelativeBlockRank() ^ 1;
  out[t] = static_cast<float*>(__cluster_map_shared_rank(s, other))[t];
  __cluster_barrier_arrive_relaxed();
  __cluster_barrier_wait();
}
#endif

}  // namespace chattn::zoo
#endif
