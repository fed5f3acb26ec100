#include "gates/sk_block_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_forward_as<float>(const SkForward&, void*, void*);
template Status sk_backward_as<float>(const SkBackward&, void*, void*);
}  // namespace chattn::cuda
