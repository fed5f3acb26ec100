#include "gates/eca_cuda_impl.cuh"

namespace chattn::cuda {
template Status eca_forward_as<bfloat16_t>(const EcaForward&, void*, void*);
template Status eca_backward_as<bfloat16_t>(const EcaBackward&, void*, void*);
}  // namespace chattn::cuda
