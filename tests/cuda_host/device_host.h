// device.cuh for a plain C++ compiler: every access, barrier and shuffle goes to the host runtime,
// with the line of the kernel it stands on.
#pragma once
#include <math.h>

#include <cstring>
#include <memory>
#include <source_location>
#include <tuple>
#include <type_traits>

#include "common/device.cuh"
#include "cuda_host/cuda_types.h"

#define CHATTN_KERNEL(...) void
#define CHATTN_DEVICE inline
#define CHATTN_DEVICE_CALLED inline
#define CHATTN_UNROLL
#define CHATTN_UNROLL_BY(n)

#undef __shared__
#define __shared__ static_assert(false, "kernels use shared<T>() instead of __shared__");

// ---- what the runtime offers
namespace hostcuda {

using Site = std::source_location;

// The part of a CUDA thread that kernels read.
struct ThreadIndices {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern constinit thread_local ThreadIndices* current __attribute__((tls_model("initial-exec")));

enum class Access : unsigned char { load, load_once, store, atomic };
enum class WarpOp : unsigned char { sync, shfl, shfl_xor, shfl_down, shfl_up, ballot, reduce };

// A slice of one block's shared memory, checked by index.
struct Block;
struct SharedArray {
  unsigned char* p;
  Block* owner;
  int count;
  int element_bytes;
};

void global_access(const void* p, std::size_t bytes, Access kind, Site site);
unsigned char* shared_access(const SharedArray& array, int index, int elements, Access kind,
                             Site site);
SharedArray shared_array(std::size_t byte_offset, int count, int element_bytes, Site site);
SharedArray at_rank(const SharedArray& array, unsigned rank, Site site);

void sync_block(Site site);
void sync_cluster(bool relaxed, Site site);
void sync_grid(Site site);
void fence();
unsigned cluster_rank();
unsigned cluster_size();

// One rendezvous of the lanes in `mask`; values travel as bits.
struct WarpRequest {
  WarpOp op;
  unsigned mask;
  int argument;  // lane, xor mask, distance
  int width;
  std::uint64_t bits;
  std::uint64_t (*combine)(std::uint64_t, std::uint64_t);  // reduce
};
std::uint64_t warp_exchange(const WarpRequest& request, Site site);

// A launch whose arguments are kept, so that it can be put off.
struct LaunchCall {
  const char* name;
  chattn::LaunchConfig config;
  void (*body)(void*);
  std::shared_ptr<void> args;
  const void* kernel;  // the function, for its name
};
void run(const LaunchCall& call);
chattn::DeviceInfo device_info();

template <class T>
std::uint64_t to_bits(T v) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof v);
  return bits;
}
template <class T>
T from_bits(std::uint64_t bits) {
  T v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
template <class T>
T shuffle(WarpOp op, unsigned mask, T v, int argument, int width, Site site) {
  return from_bits<T>(warp_exchange({op, mask, argument, width, to_bits(v), nullptr}, site));
}

}  // namespace hostcuda

// ---- CUDA names
#define threadIdx (::hostcuda::current->thread)
#define blockIdx (::hostcuda::current->block)
#define blockDim (::hostcuda::current->block_dim)
#define gridDim (::hostcuda::current->grid_dim)

#define CHATTN_SITE ::hostcuda::Site site = ::hostcuda::Site::current()

inline void __syncthreads(CHATTN_SITE) { ::hostcuda::sync_block(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, CHATTN_SITE) {
  ::hostcuda::warp_exchange({::hostcuda::WarpOp::sync, mask, 0, 32, 0, nullptr}, site);
}
inline void __threadfence() { ::hostcuda::fence(); }
template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, CHATTN_SITE) {
  return ::hostcuda::shuffle(::hostcuda::WarpOp::shfl, mask, v, lane, width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, CHATTN_SITE) {
  return ::hostcuda::shuffle(::hostcuda::WarpOp::shfl_xor, mask, v, lane_mask, width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, CHATTN_SITE) {
  return ::hostcuda::shuffle(::hostcuda::WarpOp::shfl_down, mask, v, static_cast<int>(delta), width,
                             site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, CHATTN_SITE) {
  return ::hostcuda::shuffle(::hostcuda::WarpOp::shfl_up, mask, v, static_cast<int>(delta), width,
                             site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CHATTN_SITE) {
  return static_cast<unsigned>(::hostcuda::warp_exchange(
      {::hostcuda::WarpOp::ballot, mask, 0, 32, predicate != 0, nullptr}, site));
}

// ---- the device API
namespace chattn {

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline float rsqrtf(float v) { return 1.f / ::sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / ::sqrt(v); }

namespace detail {

// Copies without assuming alignment: the runtime has checked it, and said where it was wrong.
template <class T>
T read_as(const void* p) {
  T v;
  std::memcpy(static_cast<void*>(&v), p, sizeof v);
  return v;
}

// std::atomic_ref would need an aligned T&; the builtin is what it calls.
template <class T>
T fetch_add(T* p, T v) {
  static_assert(std::is_integral_v<T>, "float atomics would make the result depend on timing");
  return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL);
}

}  // namespace detail

template <class T>
T ld(const T* p, CHATTN_SITE) {
  hostcuda::global_access(p, sizeof(T), hostcuda::Access::load, site);
  return *p;
}
template <class T>
void st(T* p, std::type_identity_t<T> v, CHATTN_SITE) {
  hostcuda::global_access(p, sizeof(T), hostcuda::Access::store, site);
  *p = v;
}
template <int N, class T>
Vec<T, N> load_vec(const T* p, CHATTN_SITE) {
  static_assert(sizeof(Vec<T, N>) <= 16, "one access moves at most 16 bytes");
  hostcuda::global_access(p, sizeof(Vec<T, N>), hostcuda::Access::load, site);
  return detail::read_as<Vec<T, N>>(p);
}
template <class T, int N>
void store_vec(T* p, const Vec<T, N>& v, CHATTN_SITE) {
  static_assert(sizeof(Vec<T, N>) <= 16, "one access moves at most 16 bytes");
  hostcuda::global_access(p, sizeof v, hostcuda::Access::store, site);
  std::memcpy(static_cast<void*>(p), &v, sizeof v);
}
template <int N, class T>
Vec<T, N> load_stream(const T* p, CHATTN_SITE) {
  static_assert(sizeof(Vec<T, N>) <= 16, "one access moves at most 16 bytes");
  hostcuda::global_access(p, sizeof(Vec<T, N>), hostcuda::Access::load_once, site);
  return detail::read_as<Vec<T, N>>(p);
}
template <class T, int N>
void store_stream(T* p, const Vec<T, N>& v, CHATTN_SITE) {
  store_vec(p, v, site);
}
inline unsigned opaque(unsigned v) { return v; }
template <class T>
T atomic_add(T* p, std::type_identity_t<T> v, CHATTN_SITE) {
  hostcuda::global_access(p, sizeof(T), hostcuda::Access::atomic, site);
  return detail::fetch_add(p, v);
}

template <class T>
struct Shared {
  static_assert(sizeof(T) >= 2, "the race check works on units of two bytes");
  hostcuda::SharedArray array;
  int count;

  T ld(int i, CHATTN_SITE) const { return detail::read_as<T>(at(i, 1, load, site)); }
  void st(int i, T v, CHATTN_SITE) const { write(at(i, 1, store, site), v); }
  template <int N>
  Vec<T, N> ldv(int i, CHATTN_SITE) const {
    static_assert(sizeof(Vec<T, N>) <= 16, "one access moves at most 16 bytes");
    return detail::read_as<Vec<T, N>>(at(i, N, load, site));
  }
  template <int N>
  void stv(int i, const Vec<T, N>& v, CHATTN_SITE) const {
    static_assert(sizeof(Vec<T, N>) <= 16, "one access moves at most 16 bytes");
    write(at(i, N, store, site), v);
  }
  T atomic_add(int i, T v, CHATTN_SITE) const {
    return detail::fetch_add(reinterpret_cast<T*>(at(i, 1, hostcuda::Access::atomic, site)), v);
  }
  Shared at_rank(unsigned rank, CHATTN_SITE) const {
    return {hostcuda::at_rank(array, rank, site), count};
  }

 private:
  static constexpr hostcuda::Access load = hostcuda::Access::load;
  static constexpr hostcuda::Access store = hostcuda::Access::store;

  unsigned char* at(int i, int elements, hostcuda::Access kind, hostcuda::Site site) const {
    return hostcuda::shared_access(array, i, elements, kind, site);
  }
  template <class V>
  static void write(unsigned char* p, const V& v) {
    std::memcpy(p, static_cast<const void*>(&v), sizeof v);
  }
};

template <class T>
Shared<T> shared(std::size_t byte_offset, int count, CHATTN_SITE) {
  return {hostcuda::shared_array(byte_offset, count, sizeof(T), site), count};
}

// One rendezvous instead of log2(Width) shuffles; the additions are those of the butterfly.
template <int Width = kWarp, class T>
T warp_sum(T v, CHATTN_SITE) {
  static_assert(Width > 0 && Width <= kWarp && (Width & (Width - 1)) == 0);
  const auto add = [](std::uint64_t a, std::uint64_t b) {
    return hostcuda::to_bits(static_cast<T>(hostcuda::from_bits<T>(a) + hostcuda::from_bits<T>(b)));
  };
  return hostcuda::from_bits<T>(hostcuda::warp_exchange(
      {hostcuda::WarpOp::reduce, kFullMask, 0, Width, hostcuda::to_bits(v), add}, site));
}
template <int Width = kWarp, class T>
T warp_max(T v, CHATTN_SITE) {
  static_assert(Width > 0 && Width <= kWarp && (Width & (Width - 1)) == 0);
  const auto larger = [](std::uint64_t a, std::uint64_t b) {
    return hostcuda::to_bits(nan_max(hostcuda::from_bits<T>(a), hostcuda::from_bits<T>(b)));
  };
  return hostcuda::from_bits<T>(hostcuda::warp_exchange(
      {hostcuda::WarpOp::reduce, kFullMask, 0, Width, hostcuda::to_bits(v), larger}, site));
}

inline unsigned cluster_rank() { return hostcuda::cluster_rank(); }
inline unsigned cluster_size() { return hostcuda::cluster_size(); }
inline void cluster_sync(CHATTN_SITE) { hostcuda::sync_cluster(false, site); }
inline void cluster_sync_relaxed(CHATTN_SITE) { hostcuda::sync_cluster(true, site); }
inline void grid_sync(CHATTN_SITE) { hostcuda::sync_grid(site); }

template <class... Params, class... Args>
Status launch(const char* name, void (*kernel)(Params...), const LaunchConfig& config,
              Args... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "wrong number of kernel arguments");
  static_assert((std::is_trivially_copyable_v<Params> && ...), "a GPU copies arguments as bytes");
  static_assert(!(std::is_reference_v<Params> || ...), "a GPU cannot follow references to the CPU");
  static_assert((sizeof(Params) + ... + 0) <= 4096, "kernel arguments have room for 4 KiB");
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> args;
  };
  const auto body = [](void* p) {
    const Call& c = *static_cast<Call*>(p);
    std::apply(c.kernel, c.args);
  };
  hostcuda::run(
      {name, config, body,
       std::make_shared<Call>(kernel, std::tuple<Params...>(static_cast<Params>(args)...)),
       reinterpret_cast<const void*>(kernel)});
  return Status{};
}

inline DeviceInfo device_info() { return hostcuda::device_info(); }
template <class... Params>
bool has_clusters(void (*)(Params...)) {
  return device_info().sm >= 90;
}

}  // namespace chattn

#undef CHATTN_SITE
