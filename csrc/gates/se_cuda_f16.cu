#include "gates/se_cuda_impl.cuh"

namespace chattn::cuda {
template Status se_forward_as<half_t>(const SeForward&, void*, void*);
template Status se_backward_as<half_t>(const SeBackward&, void*, void*);
}  // namespace chattn::cuda
