// What one source needs to be compiled by nvcc (host and device) and by a plain C++ compiler.
#pragma once

#if defined(__CUDACC__)
#define CHATTN_HD __host__ __device__ __forceinline__
#else
#define CHATTN_HD inline __attribute__((always_inline))
#endif

#if defined(__CUDA_ARCH__)
#define CHATTN_ON_DEVICE 1
#else
#define CHATTN_ON_DEVICE 0
#endif
