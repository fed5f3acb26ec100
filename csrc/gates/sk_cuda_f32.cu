#include "gates/sk_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_squeeze_as<float>(const SkSqueeze&, void*, void*);
template Status sk_select_as<float>(const SkSelect&, void*, void*);
template Status sk_dot_as<float>(const SkDot&, void*, void*);
template Status sk_gradient_as<float>(const SkGradient&, void*, void*);
}  // namespace chattn::cuda
