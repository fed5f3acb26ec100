// Runs the CUDA launchers on torch's current stream.
//
// The stream comes from libtorch_cuda, which this library does not link so that it also loads
// beside a CPU build of torch. A tensor on a GPU is proof that libtorch_cuda is in the process.
#pragma once
#include <dlfcn.h>

#include "engine/cuda/run.h"
#include "ops/tensor.h"

namespace chattn::ops {

inline void* current_stream(std::int32_t device) {
  using Getter = AOTITorchError (*)(std::int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    STD_TORCH_CHECK(symbol != nullptr, "chattn_cuda: libtorch_cuda.so offers no current stream");
    return reinterpret_cast<Getter>(symbol);
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "chattn_cuda: torch has no current stream");
  return stream;
}

struct CudaRunner {
  // Scratch memory comes from torch's caching allocator, on the same stream.
  template <class Call>
  static void run(const Tensor& x, const Call& p) {
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    const index_t bytes = cuda::scratch_bytes(p);
    const Tensor scratch = new_tensor(x, {(bytes + 7) / 8}, ScalarType::Double);
    check(cuda::run(p, scratch.data_ptr(), current_stream(x.get_device_index())), Call::kName);
  }
};

}  // namespace chattn::ops
