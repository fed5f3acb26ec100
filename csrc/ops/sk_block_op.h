// The selective kernel with its network as one pair of operators: schema, memory-safety checks,
// allocation. The arguments of the network are accumulators.
#pragma once
#include <tuple>
#include <vector>

#include "gates/sk_block.h"
#include "ops/sk_op.h"

namespace chattn::ops {

// mean and var: the norm's fixed statistics, or with of_batch the running ones to be updated, if
// any. With neither there is no norm.
inline constexpr const char* kSkForwardSchema =
    "sk_forward(Tensor[] branches, Tensor w_reduce, Tensor? b_reduce, Tensor? weight, "
    "Tensor? bias, Tensor w_select, Tensor? b_select, Tensor(a!)? mean, Tensor(b!)? var, "
    "bool of_batch, float momentum, float eps, bool relu, Tensor? prologue=None) -> (Tensor y, "
    "Tensor pooled, Tensor hidden, "
    "Tensor activated, Tensor batch_mean, Tensor batch_var, Tensor logits)";
inline constexpr const char* kSkBackwardSchema =
    "sk_backward(Tensor dy, Tensor? dlogits, Tensor[] branches, Tensor w_reduce, Tensor? weight, "
    "Tensor w_select, Tensor? mean, Tensor? var, bool of_batch, float eps, bool relu, "
    "Tensor pooled, Tensor hidden, Tensor activated, Tensor logits, bool stacked, bool need_dx, "
    "bool need_dw) -> (Tensor[] dbranches, Tensor dw_reduce, Tensor db_reduce, Tensor dweight, "
    "Tensor dbias, Tensor dw_select, Tensor db_select)";

using OptionalTensor = std::optional<Tensor>;
using SkOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using SkGradients = std::tuple<std::vector<Tensor>, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Checks the network's arguments, makes them dense, and points at them.
inline SkNetwork sk_network(const Tensor& x, index_t m, Tensor& w_reduce, OptionalTensor& weight,
                            Tensor& w_select, OptionalTensor& mean, OptionalTensor& var,
                            bool of_batch, double eps, bool relu) {
  const index_t c = x.size(1);
  const ScalarType acc = acc_type(x.scalar_type());
  STD_TORCH_CHECK(w_reduce.dim() >= 2 && w_reduce.size(0) >= 1 && w_select.dim() >= 2,
                  "chattn_cuda::sk: w_reduce and w_select must be matrices");
  STD_TORCH_CHECK(mean.has_value() == var.has_value(), "chattn_cuda::sk: mean without var");
  SkNetwork network;
  network.d = w_reduce.size(0);
  check_like(w_reduce, x, acc, network.d * c, "w_reduce");
  check_like(w_select, x, acc, network.d * m * c, "w_select");
  STD_TORCH_CHECK(w_reduce.size(1) == c && w_select.size(0) == m * c,
                  "chattn_cuda::sk: w_reduce must be (d, C) and w_select (M * C, d)");
  for (OptionalTensor* t : {&weight, &mean, &var}) {
    if (*t) check_like(**t, x, acc, network.d, "an argument of the norm");
  }
  STD_TORCH_CHECK((!mean || mean->is_contiguous()) && (!var || var->is_contiguous()),
                  "chattn_cuda::sk: mean and var must be contiguous");
  weight = row_major(weight);
  network.norm = of_batch ? SkNetwork::Norm::of_batch
                 : mean   ? SkNetwork::Norm::fixed
                          : SkNetwork::Norm::none;
  network.eps = eps;
  network.relu = relu;
  w_reduce = row_major(w_reduce);
  w_select = row_major(w_select);
  network.w_reduce = w_reduce.data_ptr();
  network.w_select = w_select.data_ptr();
  network.weight = pointer(weight);
  return network;
}

template <class Runner>
SkOutputs sk_forward(std::vector<Tensor> x, Tensor w_reduce, OptionalTensor b_reduce,
                     OptionalTensor weight, OptionalTensor bias, Tensor w_select,
                     OptionalTensor b_select, OptionalTensor mean, OptionalTensor var,
                     bool of_batch, double momentum, double eps, bool relu,
                     OptionalTensor prologue) {
  check_branches(x);
  SkForward p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  const index_t n = p.map.n, c = p.map.c, m = static_cast<index_t>(x.size());
  const ScalarType acc = acc_type(x[0].scalar_type());
  p.network = sk_network(x[0], m, w_reduce, weight, w_select, mean, var, of_batch, eps, relu);
  const index_t d = p.network.d;
  const bool normalised = p.network.norm != SkNetwork::Norm::none;
  if (b_reduce) check_like(*b_reduce, x[0], acc, d, "b_reduce");
  if (bias) check_like(*bias, x[0], acc, d, "bias");
  if (b_select) check_like(*b_select, x[0], acc, m * c, "b_select");
  b_reduce = row_major(b_reduce);
  bias = row_major(bias);
  b_select = row_major(b_select);

  Tensor y =
      new_tensor(x[0], {n, c, x[0].size(2), x[0].size(3)}, x[0].scalar_type(), p.map.channels_last);
  Tensor pooled = new_tensor(x[0], {n, c}, acc);
  Tensor hidden = new_tensor(x[0], {normalised ? n : 0, d}, acc);
  Tensor activated = new_tensor(x[0], {n, d}, acc);
  Tensor batch_mean = new_tensor(x[0], {of_batch ? d : 0}, acc);
  Tensor batch_var = new_tensor(x[0], {of_batch ? d : 0}, acc);
  Tensor logits = new_tensor(x[0], {n, m, c}, acc);
  STD_TORCH_CHECK(n > 1 || !of_batch, "chattn_cuda::sk: statistics of fewer than two samples");
  if (n > 0) {
    p.x = in_place(x, p.map);
    set_prologue(p.x, prologue, x[0]);
    p.network.b_reduce = pointer(b_reduce);
    p.network.bias = pointer(bias);
    p.network.b_select = pointer(b_select);
    p.mean = of_batch ? batch_mean.data_ptr() : mean ? mean->data_ptr() : nullptr;
    p.variance = of_batch ? batch_var.data_ptr() : var ? var->data_ptr() : nullptr;
    p.running_mean = of_batch && mean ? mean->data_ptr() : nullptr;
    p.running_variance = of_batch && var ? var->data_ptr() : nullptr;
    p.network.momentum = momentum;
    p.pooled = pooled.data_ptr();
    p.hidden = hidden.data_ptr();
    p.activated = activated.data_ptr();
    p.logits = logits.data_ptr();
    p.y = y.data_ptr();
    Runner::run(x[0], p);
  }
  return {y, pooled, hidden, activated, batch_mean, batch_var, logits};
}

template <class Runner>
SkGradients sk_backward(Tensor dy, OptionalTensor dlogits, std::vector<Tensor> x, Tensor w_reduce,
                        OptionalTensor weight, Tensor w_select, OptionalTensor mean,
                        OptionalTensor var, bool of_batch, double eps, bool relu, Tensor pooled,
                        Tensor hidden, Tensor activated, Tensor logits, bool stacked, bool need_dx,
                        bool need_dw) {
  check_branches(x);
  check_gradient(dy, x[0]);
  SkBackward p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  const index_t n = p.map.n, c = p.map.c, m = static_cast<index_t>(x.size());
  const ScalarType acc = acc_type(x[0].scalar_type());
  STD_TORCH_CHECK(n > 0, "chattn_cuda::sk: sk_backward takes a batch of one or more");
  p.network = sk_network(x[0], m, w_reduce, weight, w_select, mean, var, of_batch, eps, relu);
  STD_TORCH_CHECK(!of_batch || mean, "chattn_cuda::sk: sk_backward needs the batch's statistics");
  const index_t d = p.network.d;
  const bool normalised = p.network.norm != SkNetwork::Norm::none;
  check_like(pooled, x[0], acc, n * c, "pooled");
  check_like(hidden, x[0], acc, normalised ? n * d : 0, "hidden");
  check_like(activated, x[0], acc, n * d, "activated");
  check_like(logits, x[0], acc, n * m * c, "logits");
  if (dlogits) check_like(*dlogits, x[0], acc, n * m * c, "dlogits");
  stacked = stacked && need_dx;
  STD_TORCH_CHECK(!stacked || aligned_slices(p.map),
                  "chattn_cuda::sk: slices of a stacked gradient must start on 16-byte boundaries");

  std::vector<Tensor> dx;
  if (need_dx) p.dx = new_branches(dx, x[0], static_cast<int>(m), p.map, stacked);
  const auto wanted = [&](bool also, std::initializer_list<std::int64_t> sizes) {
    return need_dw && also ? new_tensor(x[0], sizes, acc) : new_tensor(x[0], {0}, acc);
  };
  // The weights' own shapes: as matrices or as convolutions'.
  const auto weight_like = [&](const Tensor& w) {
    if (!need_dw) return new_tensor(x[0], {0}, acc);
    return torch::stable::empty(w.sizes(), acc, std::nullopt, w.device());
  };
  Tensor dw_reduce = weight_like(w_reduce), db_reduce = wanted(true, {d});
  Tensor dweight = wanted(normalised, {d}), dbias = wanted(normalised, {d});
  Tensor dw_select = weight_like(w_select), db_select = wanted(true, {m * c});
  p.x = in_place(x, p.map);
  dy = in_format(dy, p.map.channels_last);
  dlogits = row_major(dlogits);
  pooled = row_major(pooled);
  hidden = row_major(hidden);
  activated = row_major(activated);
  logits = row_major(logits);
  p.dy = dy.data_ptr();
  p.dlogits = pointer(dlogits);
  p.mean = pointer(mean);
  p.variance = pointer(var);
  p.pooled = pooled.data_ptr();
  p.hidden = hidden.data_ptr();
  p.activated = activated.data_ptr();
  p.logits = logits.data_ptr();
  if (need_dw) {
    p.dw_reduce = dw_reduce.data_ptr();
    p.db_reduce = db_reduce.data_ptr();
    p.dweight = normalised ? dweight.data_ptr() : nullptr;
    p.dbias = normalised ? dbias.data_ptr() : nullptr;
    p.dw_select = dw_select.data_ptr();
    p.db_select = db_select.data_ptr();
  }
  Runner::run(x[0], p);
  return {dx, dw_reduce, db_reduce, dweight, dbias, dw_select, db_select};
}

template <class Library>
void define_sk_block(Library& m) {
  m.def(kSkForwardSchema);
  m.def(kSkBackwardSchema);
}

template <class Runner>
void register_sk_block(torch::stable::detail::StableLibrary& m) {
  m.impl("sk_forward", TORCH_BOX(&sk_forward<Runner>));
  m.impl("sk_backward", TORCH_BOX(&sk_backward<Runner>));
}

}  // namespace chattn::ops
