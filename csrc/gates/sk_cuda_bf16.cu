#include "gates/sk_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_squeeze_as<bfloat16_t>(const SkSqueeze&, void*, void*);
template Status sk_select_as<bfloat16_t>(const SkSelect&, void*, void*);
template Status sk_dot_as<bfloat16_t>(const SkDot&, void*, void*);
template Status sk_gradient_as<bfloat16_t>(const SkGradient&, void*, void*);
}  // namespace chattn::cuda
