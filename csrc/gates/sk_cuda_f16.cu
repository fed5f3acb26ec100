#include "gates/sk_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_squeeze_as<half_t>(const SkSqueeze&, void*, void*);
template Status sk_select_as<half_t>(const SkSelect&, void*, void*);
template Status sk_dot_as<half_t>(const SkDot&, void*, void*);
template Status sk_gradient_as<half_t>(const SkGradient&, void*, void*);
template Status launch_squeeze<half_t>(const MapShape&, const Branches&, acc_t<half_t>*,
                                       const Arrivals&, void*);
template Status launch_dot<half_t>(const SkDot&, const acc_t<half_t>*, acc_t<half_t>*,
                                   const Arrivals&, void*);
}  // namespace chattn::cuda
