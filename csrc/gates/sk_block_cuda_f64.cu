#include "gates/sk_block_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_forward_as<double>(const SkForward&, void*, void*);
template Status sk_backward_as<double>(const SkBackward&, void*, void*);
}  // namespace chattn::cuda
