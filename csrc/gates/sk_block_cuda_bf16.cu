#include "gates/sk_block_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_forward_as<bfloat16_t>(const SkForward&, void*, void*);
template Status sk_backward_as<bfloat16_t>(const SkBackward&, void*, void*);
}  // namespace chattn::cuda
