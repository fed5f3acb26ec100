#include "gates/sk_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_squeeze_as<double>(const SkSqueeze&, void*, void*);
template Status sk_select_as<double>(const SkSelect&, void*, void*);
template Status sk_dot_as<double>(const SkDot&, void*, void*);
template Status sk_gradient_as<double>(const SkGradient&, void*, void*);
template Status launch_squeeze<double>(const MapShape&, const Branches&, acc_t<double>*,
                                       const Arrivals&, void*);
template Status launch_dot<double>(const SkDot&, const acc_t<double>*, acc_t<double>*,
                                   const Arrivals&, void*);
}  // namespace chattn::cuda
