#include "gates/sk_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_squeeze_as<double>(const SkSqueeze&, void*, void*);
template Status sk_select_as<double>(const SkSelect&, void*, void*);
template Status sk_dot_as<double>(const SkDot&, void*, void*);
template Status sk_gradient_as<double>(const SkGradient&, void*, void*);
}  // namespace chattn::cuda
