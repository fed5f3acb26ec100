// The operators of efficient channel attention: memory-safety checks, allocation, schema.
#include <tuple>

#include "blocks/eca/plan.h"
#include "engine/cuda/plans.h"
#include "ops/register.h"
#include "ops/tensor.h"

namespace chattn::ops {
namespace {

ConvGate conv_gate(const Tensor& x, const Tensor& weight, std::int64_t gate_fn, bool circular) {
  STD_TORCH_CHECK(x.dim() == 4, "chattn_cuda::eca: x must be 4-D");
  const index_t c = x.size(1);
  STD_TORCH_CHECK(c >= 1 && x.size(2) >= 1 && x.size(3) >= 1,
                  "chattn_cuda::eca: C, H and W must be at least 1");
  STD_TORCH_CHECK(weight.dim() == 3 && (weight.size(0) == 1 || weight.size(0) == c) &&
                      weight.size(1) == 1 && weight.size(2) % 2 == 1,
                  "chattn_cuda::eca: weight must be (1, 1, k) or (C, 1, k) with an odd k");
  STD_TORCH_CHECK(weight.device() == x.device(), "chattn_cuda::eca: weight is on another device");
  ConvGate gate;
  gate.weight_dtype = weight_dtype(weight, x);
  gate.taps = weight.size(2);
  gate.per_channel = weight.size(0) > 1;
  gate.circular = circular;
  STD_TORCH_CHECK(!circular || gate.reach() <= c,
                  "chattn_cuda::eca: circular padding wraps around more than once");
  STD_TORCH_CHECK(gate_fn >= 0 && gate_fn < kActCount && is_gate(static_cast<Act>(gate_fn)),
                  "chattn_cuda::eca: unknown gate code");
  gate.gate = static_cast<Act>(gate_fn);
  return gate;
}

template <class Runner>
std::tuple<Tensor, Tensor, Tensor> eca_forward(Tensor x, Tensor weight, std::int64_t gate_fn,
                                               bool circular) {
  EcaForward p;
  p.gate = conv_gate(x, weight, gate_fn, circular);
  const index_t n = x.size(0), c = x.size(1);
  const bool channels_last = is_channels_last(x);
  const ScalarType acc = acc_type(x.scalar_type());
  Tensor y = new_map(x);
  Tensor pooled = new_tensor(x, {n, c}, acc);
  Tensor scale = new_tensor(x, {n, c}, acc);
  if (n > 0) {
    x = in_format(x, channels_last);
    weight = row_major(weight);
    p.map = map_shape(x, channels_last);
    p.x = x.data_ptr();
    p.weight = weight.data_ptr();
    p.y = y.data_ptr();
    p.pooled = pooled.data_ptr();
    p.scale = scale.data_ptr();
    Runner::run(x, p);
  }
  return {y, pooled, scale};
}
CHATTN_OPERATOR(
    eca_forward,
    "(Tensor x, Tensor weight, int gate_fn, bool circular) -> (Tensor y, Tensor pooled, "
    "Tensor gate)");

template <class Runner>
std::tuple<Tensor, Tensor> eca_backward(Tensor dy, std::optional<Tensor> dgate, Tensor x,
                                        Tensor pooled, Tensor gate, Tensor weight,
                                        std::int64_t gate_fn, bool circular, bool need_dx,
                                        bool need_dw) {
  EcaBackward p;
  p.gate = conv_gate(x, weight, gate_fn, circular);
  const index_t n = x.size(0), c = x.size(1);
  const ScalarType acc = acc_type(x.scalar_type());
  check_gradient(dy, x);
  check_like(pooled, x, acc, n * c, "pooled");
  check_like(gate, x, acc, n * c, "gate");
  if (dgate) check_like(*dgate, x, acc, n * c, "dgate");

  const bool channels_last = is_channels_last(x);
  Tensor dx = new_map(x, need_dx);
  Tensor dweight = need_dw
                       ? new_tensor(x, {weight.size(0), 1, weight.size(2)}, weight.scalar_type())
                       : new_tensor(x, {0}, weight.scalar_type());
  if (n == 0) {
    torch::stable::zero_(dweight);
    return {dx, dweight};
  }
  x = in_format(x, channels_last);
  dy = in_format(dy, channels_last);
  weight = row_major(weight);
  pooled = row_major(pooled);
  gate = row_major(gate);
  dgate = row_major(dgate);
  p.map = map_shape(x, channels_last);
  p.dy = dy.data_ptr();
  p.dgate = pointer(dgate);
  p.x = x.data_ptr();
  p.pooled = pooled.data_ptr();
  p.scale = gate.data_ptr();
  p.weight = weight.data_ptr();
  p.dx = need_dx ? dx.data_ptr() : nullptr;
  p.dweight = need_dw ? dweight.data_ptr() : nullptr;
  if (need_dx || need_dw) Runner::run(x, p);
  return {dx, dweight};
}
CHATTN_OPERATOR(
    eca_backward,
    "(Tensor dy, Tensor? dgate, Tensor x, Tensor pooled, Tensor gate, Tensor weight, "
    "int gate_fn, bool circular, bool need_dx, bool need_dw) -> (Tensor dx, Tensor dweight)");

const cuda::RegisteredPlan kPlan("eca", [](const MapShape& map, Options& options, bool backward) {
  ConvGate gate;
  gate.set(map, options);
  const bool clusters = options.integer("clusters", 1) != 0;
  return cuda::describe(cuda::plan_eca(map, gate), map, gate, backward, clusters);
});

}  // namespace
}  // namespace chattn::ops
