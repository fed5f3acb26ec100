#include "gates/sk_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_squeeze_as<bfloat16_t>(const SkSqueeze&, void*, void*);
template Status sk_select_as<bfloat16_t>(const SkSelect&, void*, void*);
template Status sk_dot_as<bfloat16_t>(const SkDot&, void*, void*);
template Status sk_gradient_as<bfloat16_t>(const SkGradient&, void*, void*);
template Status launch_squeeze<bfloat16_t>(const MapShape&, const Branches&, acc_t<bfloat16_t>*,
                                           const Arrivals&, void*);
template Status launch_dot<bfloat16_t>(const SkDot&, const acc_t<bfloat16_t>*, acc_t<bfloat16_t>*,
                                       const Arrivals&, void*);
}  // namespace chattn::cuda
