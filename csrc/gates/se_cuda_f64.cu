#include "gates/se_cuda_impl.cuh"

namespace chattn::cuda {
template Status se_forward_as<double>(const SeForward&, void*, void*);
template Status se_backward_as<double>(const SeBackward&, void*, void*);
}  // namespace chattn::cuda
