// The operators of global response normalisation: memory-safety checks, allocation, schema.
#include <tuple>

#include "blocks/grn/plan.h"
#include "engine/cuda/plans.h"
#include "ops/register.h"
#include "ops/tensor.h"

namespace chattn::ops {
namespace {

void check_grn(const Tensor& x, const Tensor& weight) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1,
                  "chattn_cuda::grn: x must be 4-D, with C, H and W at least 1");
  STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(1) && weight.device() == x.device(),
                  "chattn_cuda::grn: weight must be (C,), on the device of x");
}

template <class Runner>
std::tuple<Tensor, Tensor, Tensor> grn_forward(Tensor x, Tensor weight, Tensor bias, double eps) {
  check_grn(x, weight);
  GrnForward p;
  p.weight_dtype = weight_dtype(weight, x);
  p.eps = eps;
  const index_t n = x.size(0), c = x.size(1);
  check_like(bias, x, weight.scalar_type(), c, "bias");
  const bool channels_last = is_channels_last(x);
  const ScalarType acc = acc_type(x.scalar_type());
  Tensor y = new_map(x);
  Tensor norms = new_tensor(x, {n, c}, acc);
  Tensor scale = new_tensor(x, {n, c}, acc);
  if (n > 0) {
    x = in_format(x, channels_last);
    weight = row_major(weight);
    bias = row_major(bias);
    p.map = map_shape(x, channels_last);
    p.x = x.data_ptr();
    p.weight = weight.data_ptr();
    p.bias = bias.data_ptr();
    p.y = y.data_ptr();
    p.norms = norms.data_ptr();
    p.scale = scale.data_ptr();
    Runner::run(x, p);
  }
  return {y, norms, scale};
}
CHATTN_OPERATOR(grn_forward,
                "(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor y, Tensor norms, "
                "Tensor gate)");

template <class Runner>
std::tuple<Tensor, Tensor, Tensor> grn_backward(Tensor dy, std::optional<Tensor> dgate, Tensor x,
                                                Tensor norms, Tensor gate, Tensor weight,
                                                double eps, bool need_dx, bool need_dw) {
  check_grn(x, weight);
  GrnBackward p;
  p.weight_dtype = weight_dtype(weight, x);
  p.eps = eps;
  const index_t n = x.size(0), c = x.size(1);
  const ScalarType acc = acc_type(x.scalar_type());
  check_gradient(dy, x);
  check_like(norms, x, acc, n * c, "norms");
  check_like(gate, x, acc, n * c, "gate");
  if (dgate) check_like(*dgate, x, acc, n * c, "dgate");

  const bool channels_last = is_channels_last(x);
  Tensor dx = new_map(x, need_dx);
  Tensor dweight = new_tensor(x, {need_dw ? c : 0}, weight.scalar_type());
  Tensor dbias = new_tensor(x, {need_dw ? c : 0}, weight.scalar_type());
  if (n == 0) {
    torch::stable::zero_(dweight);
    torch::stable::zero_(dbias);
    return {dx, dweight, dbias};
  }
  x = in_format(x, channels_last);
  dy = in_format(dy, channels_last);
  weight = row_major(weight);
  norms = row_major(norms);
  gate = row_major(gate);
  dgate = row_major(dgate);
  p.map = map_shape(x, channels_last);
  p.dy = dy.data_ptr();
  p.dgate = pointer(dgate);
  p.x = x.data_ptr();
  p.norms = norms.data_ptr();
  p.scale = gate.data_ptr();
  p.weight = weight.data_ptr();
  p.dx = need_dx ? dx.data_ptr() : nullptr;
  p.dweight = need_dw ? dweight.data_ptr() : nullptr;
  p.dbias = need_dw ? dbias.data_ptr() : nullptr;
  if (need_dx || need_dw) Runner::run(x, p);
  return {dx, dweight, dbias};
}
CHATTN_OPERATOR(
    grn_backward,
    "(Tensor dy, Tensor? dgate, Tensor x, Tensor norms, Tensor gate, Tensor weight, float eps, "
    "bool need_dx, bool need_dw) -> (Tensor dx, Tensor dweight, Tensor dbias)");

const cuda::RegisteredPlan kPlan("grn", [](const MapShape& map, Options& options, bool backward) {
  options.integer("clusters", 1);  // of no influence here
  return cuda::describe(cuda::plan_grn(map, backward), map, backward);
});

}  // namespace
}  // namespace chattn::ops
