// The squeeze-and-excitation operators: memory-safety checks, allocation, schema.
#include <tuple>

#include "blocks/se/plan.h"
#include "engine/cuda/plans.h"
#include "ops/register.h"
#include "ops/tensor.h"

namespace chattn::ops {
namespace {

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Python explains to the user what is wrong; these only keep the kernels inside their arrays.
// Without w1 the gate has one layer, w2 of (C, C), and the operators leave hidden, dw1 and db1
// empty.
MlpGate mlp_gate(const Tensor& x, const std::optional<Tensor>& w1, const Tensor& w2,
                 std::int64_t act, double act_param, std::int64_t gate_fn) {
  STD_TORCH_CHECK(x.dim() == 4, "chattn_cuda::se: x must be 4-D");
  STD_TORCH_CHECK((!w1 || w1->dim() >= 2) && w2.dim() >= 2,
                  "chattn_cuda::se: w1 and w2 must be matrices");
  MlpGate gate;
  gate.direct = !w1;
  gate.rd = w1 ? w1->size(0) : x.size(1);
  const index_t c = x.size(1);
  STD_TORCH_CHECK(c >= 1 && x.size(2) >= 1 && x.size(3) >= 1 && gate.rd >= 1,
                  "chattn_cuda::se: C, H, W and rd must be at least 1");
  STD_TORCH_CHECK(
      (!w1 || w1->numel() == gate.rd * c) && w2.size(0) == c && w2.numel() == gate.rd * c,
      "chattn_cuda::se: w1 must be (rd, C) and w2 (C, rd)");
  gate.weight_dtype = weight_dtype(w2, x);
  STD_TORCH_CHECK(act >= 0 && act < kActCount, "chattn_cuda::se: unknown activation code");
  STD_TORCH_CHECK(gate_fn >= 0 && gate_fn < kActCount && is_gate(static_cast<Act>(gate_fn)),
                  "chattn_cuda::se: unknown gate code");
  gate.act = static_cast<Act>(act);
  STD_TORCH_CHECK(w1 || gate.act == Act::identity,
                  "chattn_cuda::se: without w1 the activation must be the identity");
  gate.act_param = act_param;
  gate.gate = static_cast<Act>(gate_fn);
  return gate;
}

template <class Runner>
FourTensors se_forward(Tensor x, std::optional<Tensor> w1, std::optional<Tensor> b1, Tensor w2,
                       std::optional<Tensor> b2, std::int64_t act, double act_param,
                       std::int64_t gate_fn) {
  SeForward p;
  p.gate = mlp_gate(x, w1, w2, act, act_param, gate_fn);
  const index_t n = x.size(0), c = x.size(1), rd = p.gate.rd;
  const bool direct = p.gate.direct;
  STD_TORCH_CHECK(!direct || !b1, "chattn_cuda::se: b1 without w1");
  if (w1) check_like(*w1, x, w2.scalar_type(), rd * c, "w1");
  check_like(w2, x, w2.scalar_type(), rd * c, "w2");
  if (b1) check_like(*b1, x, w2.scalar_type(), rd, "b1");
  if (b2) check_like(*b2, x, w2.scalar_type(), c, "b2");

  const bool channels_last = is_channels_last(x);
  const ScalarType acc = acc_type(x.scalar_type());
  Tensor y = new_map(x);
  Tensor pooled = new_tensor(x, {n, c}, acc);
  Tensor hidden = direct ? new_tensor(x, {0}, acc) : new_tensor(x, {n, rd}, acc);
  Tensor scale = new_tensor(x, {n, c}, acc);
  if (n > 0) {
    x = in_format(x, channels_last);
    w1 = row_major(w1);
    w2 = row_major(w2);
    b1 = row_major(b1);
    b2 = row_major(b2);
    p.map = map_shape(x, channels_last);
    p.x = x.data_ptr();
    p.w1 = pointer(w1);
    p.b1 = pointer(b1);
    p.w2 = w2.data_ptr();
    p.b2 = pointer(b2);
    p.y = y.data_ptr();
    p.pooled = pooled.data_ptr();
    p.hidden = direct ? p.pooled : hidden.data_ptr();
    p.scale = scale.data_ptr();
    Runner::run(x, p);
  }
  return {y, pooled, hidden, scale};
}
CHATTN_OPERATOR(
    se_forward,
    "(Tensor x, Tensor? w1, Tensor? b1, Tensor w2, Tensor? b2, int act, float act_param, "
    "int gate_fn) -> (Tensor y, Tensor pooled, Tensor hidden, Tensor gate)");

template <class Runner>
FiveTensors se_backward(Tensor dy, std::optional<Tensor> dgate, Tensor x, Tensor pooled,
                        Tensor hidden, Tensor gate, std::optional<Tensor> w1, Tensor w2,
                        std::int64_t act, double act_param, std::int64_t gate_fn, bool need_dx,
                        bool need_dw) {
  SeBackward p;
  p.gate = mlp_gate(x, w1, w2, act, act_param, gate_fn);
  const index_t n = x.size(0), c = x.size(1), rd = p.gate.rd;
  const ScalarType acc = acc_type(x.scalar_type()), type = w2.scalar_type();
  const bool direct = p.gate.direct;
  check_gradient(dy, x);
  if (w1) check_like(*w1, x, type, rd * c, "w1");
  check_like(w2, x, type, rd * c, "w2");
  check_like(pooled, x, acc, n * c, "pooled");
  check_like(hidden, x, acc, direct ? 0 : n * rd, "hidden");
  check_like(gate, x, acc, n * c, "gate");
  if (dgate) check_like(*dgate, x, acc, n * c, "dgate");

  const bool channels_last = is_channels_last(x);
  Tensor dx = new_map(x, need_dx);
  // The weights' own shapes: (rd, C) or (rd, C, 1, 1).
  const auto weight_like = [&](const std::optional<Tensor>& w) {
    if (!need_dw || !w) return new_tensor(w2, {0}, type);
    return new_tensor(w2, w->sizes(), type);
  };
  Tensor dw1 = weight_like(w1), dw2 = weight_like(w2);
  Tensor db1 = new_tensor(w2, {need_dw && w1 ? rd : 0}, type);
  Tensor db2 = new_tensor(w2, {need_dw ? c : 0}, type);
  if (n == 0) {
    for (Tensor* t : {&dw1, &db1, &dw2, &db2}) torch::stable::zero_(*t);
    return {dx, dw1, db1, dw2, db2};
  }
  x = in_format(x, channels_last);
  dy = in_format(dy, channels_last);
  w1 = row_major(w1);
  w2 = row_major(w2);
  pooled = row_major(pooled);
  hidden = row_major(hidden);
  gate = row_major(gate);
  dgate = row_major(dgate);
  p.map = map_shape(x, channels_last);
  p.dy = dy.data_ptr();
  p.dgate = pointer(dgate);
  p.x = x.data_ptr();
  p.pooled = pooled.data_ptr();
  p.hidden = direct ? p.pooled : hidden.data_ptr();
  p.scale = gate.data_ptr();
  p.w1 = pointer(w1);
  p.w2 = w2.data_ptr();
  p.dx = need_dx ? dx.data_ptr() : nullptr;
  if (need_dw) {
    p.dw1 = direct ? nullptr : dw1.data_ptr();
    p.db1 = direct ? nullptr : db1.data_ptr();
    p.dw2 = dw2.data_ptr();
    p.db2 = db2.data_ptr();
  }
  if (need_dx || need_dw) Runner::run(x, p);
  return {dx, dw1, db1, dw2, db2};
}
CHATTN_OPERATOR(
    se_backward,
    "(Tensor dy, Tensor? dgate, Tensor x, Tensor pooled, Tensor hidden, "
    "Tensor gate, Tensor? w1, Tensor w2, int act, float act_param, int gate_fn, "
    "bool need_dx, bool need_dw) -> (Tensor dx, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2)");

const cuda::RegisteredPlan kPlan("se", [](const MapShape& map, Options& options, bool backward) {
  MlpGate gate;
  gate.set(map, options);
  return cuda::describe(cuda::plan_se(map, gate), map, gate, backward);
});

}  // namespace
}  // namespace chattn::ops
