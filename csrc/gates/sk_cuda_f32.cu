#include "gates/sk_cuda_impl.cuh"

namespace chattn::cuda {
template Status sk_squeeze_as<float>(const SkSqueeze&, void*, void*);
template Status sk_select_as<float>(const SkSelect&, void*, void*);
template Status sk_dot_as<float>(const SkDot&, void*, void*);
template Status sk_gradient_as<float>(const SkGradient&, void*, void*);
template Status launch_squeeze<float>(const MapShape&, const Branches&, acc_t<float>*,
                                      const Arrivals&, void*);
template Status launch_dot<float>(const SkDot&, const acc_t<float>*, acc_t<float>*, const Arrivals&,
                                  void*);
}  // namespace chattn::cuda
