// grid_sync(): a barrier over the whole grid, for kernels launched with `cooperative`. Apart from
// device.cuh, because cooperative_groups.h doubles the compile time of a file.
#pragma once
#include "common/device.cuh"

#if defined(__CUDACC__)
#include <cooperative_groups.h>

namespace chattn {

CHATTN_DEVICE void grid_sync() { cooperative_groups::this_grid().sync(); }

}  // namespace chattn
#endif
