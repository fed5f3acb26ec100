// device.cuh for nvcc: wrappers that inline to the plain CUDA expression.
#pragma once
#include <mutex>

// Threads per block and, if given, how many blocks must fit on a multiprocessor.
#define CHATTN_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define CHATTN_DEVICE __device__ __forceinline__
// Called, where a copy for every call would be too much code.
#define CHATTN_DEVICE_CALLED __device__ __noinline__
#define CHATTN_PRAGMA(text) _Pragma(#text)
#define CHATTN_UNROLL CHATTN_PRAGMA(unroll)
#define CHATTN_UNROLL_BY(n) CHATTN_PRAGMA(unroll n)

namespace chattn {

// ---- global memory
template <class T>
CHATTN_DEVICE T ld(const T* p) {
  return *p;
}
template <class T>
CHATTN_DEVICE void st(T* p, std::type_identity_t<T> v) {
  *p = v;
}
template <int N, class T>
CHATTN_DEVICE Vec<T, N> load_vec(const T* p) {
  static_assert(sizeof(Vec<T, N>) <= 16, "one access moves at most 16 bytes");
  return *reinterpret_cast<const Vec<T, N>*>(p);
}

namespace detail {

// The built-in type that moves a vector of this many bytes.
template <std::size_t Bytes>
struct Packed;
template <>
struct Packed<1> {
  using type = unsigned char;
};
template <>
struct Packed<2> {
  using type = unsigned short;
};
template <>
struct Packed<4> {
  using type = unsigned;
};
template <>
struct Packed<8> {
  using type = uint2;
};
template <>
struct Packed<16> {
  using type = uint4;
};

template <class To, class From>
CHATTN_DEVICE To repack(const From& from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// Not volatile, unlike __ldcs: the compiler may move these loads past stores, which is what keeps
// many of them in flight.
CHATTN_DEVICE unsigned short load_once(const unsigned short* p) {
  unsigned short r;
  asm("ld.global.cs.nc.u16 %0, [%1];" : "=h"(r) : "l"(p));
  return r;
}
CHATTN_DEVICE unsigned load_once(const unsigned* p) {
  unsigned r;
  asm("ld.global.cs.nc.u32 %0, [%1];" : "=r"(r) : "l"(p));
  return r;
}
CHATTN_DEVICE uint2 load_once(const uint2* p) {
  uint2 r;
  asm("ld.global.cs.nc.v2.u32 {%0, %1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(p));
  return r;
}
CHATTN_DEVICE uint4 load_once(const uint4* p) {
  uint4 r;
  asm("ld.global.cs.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
      : "l"(p));
  return r;
}
CHATTN_DEVICE unsigned char load_once(const unsigned char* p) { return __ldcs(p); }

}  // namespace detail

// One store of the whole width: an assignment the compiler would take apart where that suits it.
template <class T, int N>
CHATTN_DEVICE void store_vec(T* p, const Vec<T, N>& v) {
  using Word = typename detail::Packed<sizeof(Vec<T, N>)>::type;
  __stwb(reinterpret_cast<Word*>(p), detail::repack<Word>(v));
}

// Evict-first, for data that no later access wants. The launch must not write what it loads so.
template <int N, class T>
CHATTN_DEVICE Vec<T, N> load_stream(const T* p) {
  using Word = typename detail::Packed<sizeof(Vec<T, N>)>::type;
  return detail::repack<Vec<T, N>>(detail::load_once(reinterpret_cast<const Word*>(p)));
}
template <class T, int N>
CHATTN_DEVICE void store_stream(T* p, const Vec<T, N>& v) {
  using Word = typename detail::Packed<sizeof(Vec<T, N>)>::type;
  __stcs(reinterpret_cast<Word*>(p), detail::repack<Word>(v));
}

// The same value, but the compiler no longer knows it: what is computed of it is computed again
// instead of being kept, and not before.
CHATTN_DEVICE unsigned opaque(unsigned v) {
  asm volatile("" : "+r"(v));
  return v;
}

template <class T>
CHATTN_DEVICE T atomic_add(T* p, std::type_identity_t<T> v) {
  static_assert(std::is_integral_v<T>, "float atomics would make the result depend on timing");
  return atomicAdd(p, v);
}

// ---- shared memory
template <class T>
struct Shared {
  T* p;
  int count;
  CHATTN_DEVICE T ld(int i) const { return p[i]; }
  CHATTN_DEVICE void st(int i, T v) const { p[i] = v; }
  template <int N>
  CHATTN_DEVICE Vec<T, N> ldv(int i) const {
    static_assert(sizeof(Vec<T, N>) <= 16, "one access moves at most 16 bytes");
    return *reinterpret_cast<const Vec<T, N>*>(p + i);
  }
  template <int N>
  CHATTN_DEVICE void stv(int i, const Vec<T, N>& v) const {
    static_assert(sizeof(Vec<T, N>) <= 16, "one access moves at most 16 bytes");
    *reinterpret_cast<Vec<T, N>*>(p + i) = v;
  }
  CHATTN_DEVICE T atomic_add(int i, T v) const {
    static_assert(std::is_integral_v<T>, "float atomics would make the result depend on timing");
    return atomicAdd(p + i, v);
  }
  // The same array in another block of the cluster.
  CHATTN_DEVICE Shared at_rank([[maybe_unused]] unsigned rank) const {
#if __CUDA_ARCH__ >= 900
    return {static_cast<T*>(__cluster_map_shared_rank(p, rank)), count};
#else
    return *this;
#endif
  }
};

// `count` elements at a byte offset that is a multiple of 16, or of the widest access made to them.
template <class T>
CHATTN_DEVICE Shared<T> shared(std::size_t byte_offset, int count) {
  extern __shared__ __align__(16) unsigned char chattn_shared_[];
  return {reinterpret_cast<T*>(chattn_shared_ + byte_offset), count};
}

// ---- warps
// Every lane of the warp calls them; each lane gets its group's result, added in butterfly order.
template <int Width = kWarp, class T>
CHATTN_DEVICE T warp_sum(T v) {
  static_assert(Width > 0 && Width <= kWarp && (Width & (Width - 1)) == 0);
  CHATTN_UNROLL
  for (int o = Width / 2; o > 0; o >>= 1) v += __shfl_xor_sync(kFullMask, v, o);
  return v;
}
template <int Width = kWarp, class T>
CHATTN_DEVICE T warp_max(T v) {
  static_assert(Width > 0 && Width <= kWarp && (Width & (Width - 1)) == 0);
  CHATTN_UNROLL
  for (int o = Width / 2; o > 0; o >>= 1) v = nan_max(v, __shfl_xor_sync(kFullMask, v, o));
  return v;
}

// ---- clusters and grids
// Below sm_90 a block is a cluster of its own: the same kernel runs, launched with cluster = 1.
CHATTN_DEVICE unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return __clusterRelativeBlockRank();
#else
  return 0;
#endif
}
CHATTN_DEVICE unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  return __clusterSizeInBlocks();
#else
  return 1;
#endif
}
CHATTN_DEVICE void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#else
  __syncthreads();
#endif
}
// All have arrived, but nothing is published: keeps a block from leaving while others read it.
CHATTN_DEVICE void cluster_sync_relaxed() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive_relaxed();
  __cluster_barrier_wait();
#else
  __syncthreads();
#endif
}

// ---- launch
// Asynchronous and capturable. Arguments are converted to the kernel's parameter types.
template <class... Params, class... Args>
Status launch(const char* name, void (*kernel)(Params...), const LaunchConfig& c, Args... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "wrong number of kernel arguments");
  cudaError_t e = cudaSuccess;
  if (c.shared_bytes > 48 * 1024)
    e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(c.shared_bytes));
  if (e == cudaSuccess && c.cluster > 8)
    e = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (e == cudaSuccess) {
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    if (c.cluster > 1) {
      cudaLaunchAttribute& a = attributes[config.numAttrs++];
      a.id = cudaLaunchAttributeClusterDimension;
      a.val.clusterDim.x = c.cluster;
      a.val.clusterDim.y = 1;
      a.val.clusterDim.z = 1;
    }
    if (c.cooperative) {
      cudaLaunchAttribute& a = attributes[config.numAttrs++];
      a.id = cudaLaunchAttributeCooperative;
      a.val.cooperative = 1;
    }
    config.gridDim = c.grid;
    config.blockDim = c.block;
    config.dynamicSmemBytes = c.shared_bytes;
    config.stream = static_cast<cudaStream_t>(c.stream);
    config.attrs = attributes;
    e = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  }
  if (e == cudaSuccess) return Status{};
  cudaGetLastError();  // the failure is reported here, not to whoever asks next
  return Status::error("kernel %s (grid %ux%ux%u, block %ux%ux%u, cluster %u, shared %zu): %s",
                       name, c.grid.x, c.grid.y, c.grid.z, c.block.x, c.block.y, c.block.z,
                       c.cluster, c.shared_bytes, cudaGetErrorString(e));
}

namespace detail {

inline DeviceInfo query_device(int device) {
  DeviceInfo info;
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&info.multiprocessors, cudaDevAttrMultiProcessorCount, device) !=
          cudaSuccess ||
      cudaDeviceGetAttribute(&info.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                             device) != cudaSuccess) {
    cudaGetLastError();
    return DeviceInfo{};
  }
  info.sm = 10 * major + minor;
  return info;
}

}  // namespace detail

// Of the current device; asked of the driver once per device.
inline DeviceInfo device_info() {
  constexpr int kCached = 64;
  static std::once_flag once[kCached];
  static DeviceInfo cache[kCached];
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) {
    cudaGetLastError();
    return DeviceInfo{};
  }
  if (device >= kCached) return detail::query_device(device);
  std::call_once(once[device], [device] { cache[device] = detail::query_device(device); });
  return cache[device];
}

// Whether the blocks of a kernel can form clusters on the current device: it has them, and runs
// code made for a device that has them. In PTX of an older architecture a block is a cluster of its
// own.
template <class... Params>
bool has_clusters(void (*kernel)(Params...)) {
  if (device_info().sm < 90) return false;
  cudaFuncAttributes attributes = {};
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return attributes.ptxVersion >= 90;
  cudaGetLastError();
  return false;
}

}  // namespace chattn
