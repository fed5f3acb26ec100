// The selective kernel with its network as one pair of operators: memory-safety checks, allocation,
// schema. Weights have the branches' type, or are float32 beside 16-bit branches.
#include <tuple>
#include <vector>

#include "blocks/sk/plan.h"
#include "ops/branches.h"
#include "ops/register.h"
#include "ops/running.h"

namespace chattn::ops {
namespace {

using OptionalTensor = std::optional<Tensor>;
using SkOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using SkGradients = std::tuple<std::vector<Tensor>, std::vector<Tensor>>;

// Makes tensors of one type dense, those that there are; returns their type.
DType dense_numbers(const Tensor& x,
                    std::initializer_list<std::pair<OptionalTensor*, index_t>> tensors,
                    const char* name) {
  std::optional<DType> type;
  for (const auto& [t, count] : tensors) {
    if (!*t) continue;
    check_like(**t, x, (*t)->scalar_type(), count, name);
    STD_TORCH_CHECK(type.value_or(dtype(**t)) == weight_dtype(**t, x), "chattn_cuda::sk: ", name,
                    " must have one type");
    type = dtype(**t);
    *t = row_major(*t);
  }
  return type.value_or(x.scalar_type() == ScalarType::Double ? DType::f64 : DType::f32);
}

// The network of both directions; the biases are the forward's alone. Makes its numbers dense.
SkNetwork sk_network(const Tensor& x, index_t m, OptionalTensor& w_reduce, OptionalTensor& b_reduce,
                     OptionalTensor& weight, OptionalTensor& bias, OptionalTensor& w_select,
                     OptionalTensor& b_select, OptionalTensor& mean, OptionalTensor& var,
                     bool of_batch, double eps, bool relu) {
  const index_t c = x.size(1);
  STD_TORCH_CHECK(w_reduce->dim() >= 2 && w_reduce->size(0) >= 1 && w_select->dim() >= 2,
                  "chattn_cuda::sk: w_reduce and w_select must be matrices");
  const index_t d = w_reduce->size(0);
  STD_TORCH_CHECK(w_reduce->size(1) == c && w_select->size(0) == m * c,
                  "chattn_cuda::sk: w_reduce must be (d, C) and w_select (M * C, d)");
  STD_TORCH_CHECK(mean.has_value() == var.has_value(), "chattn_cuda::sk: mean without var");
  STD_TORCH_CHECK(!of_batch || !mean, "chattn_cuda::sk: two kinds of statistics");
  SkNetwork network;
  network.d = d;
  network.reduce.dtype =
      dense_numbers(x, {{&w_reduce, d * c}, {&b_reduce, d}}, "w_reduce and b_reduce");
  network.select.dtype =
      dense_numbers(x, {{&w_select, d * m * c}, {&b_select, m * c}}, "w_select and b_select");
  network.affine_dtype = dense_numbers(x, {{&weight, d}, {&bias, d}}, "weight and bias");
  network.statistics_dtype = dense_numbers(x, {{&mean, d}, {&var, d}}, "mean and var");
  network.norm = of_batch ? SkNetwork::Norm::of_batch
                 : mean   ? SkNetwork::Norm::fixed
                          : SkNetwork::Norm::none;
  network.eps = eps;
  network.relu = relu;
  network.reduce.w = pointer(w_reduce);
  network.reduce.b = pointer(b_reduce);
  network.select.w = pointer(w_select);
  network.select.b = pointer(b_select);
  network.weight = pointer(weight);
  network.bias = pointer(bias);
  network.mean = pointer(mean);
  network.variance = pointer(var);
  return network;
}

// The rows of `hidden`: how many, and where those before the norm begin, and the statistics.
struct SkRows {
  index_t n, before, statistics, count;
  SkRows(index_t samples, SkNetwork::Norm norm)
      : n(samples),
        before(n),
        statistics(norm == SkNetwork::Norm::none ? n : 2 * n),
        count(statistics + (norm == SkNetwork::Norm::of_batch ? 2 : 0)) {}
};

// Row `i` of d accumulators.
void* row_of(const Tensor& hidden, index_t i, index_t d, const MapShape& map) {
  return static_cast<char*>(hidden.data_ptr()) + i * d * acc_size(map.dtype);
}

// The batch norms of which the branches' prologue consists.
SkBranchNorms branch_norms(std::vector<Tensor>& tensors, double eps, const Tensor& x, index_t m) {
  SkBranchNorms norms;
  norms.count = static_cast<int>(tensors.size() / 4);
  STD_TORCH_CHECK(tensors.size() % 4 == 0 && (norms.count == 1 || norms.count == m),
                  "chattn_cuda::sk: the prologue takes four tensors of a norm, or of M norms");
  norms.eps = eps;
  for (Tensor& t : tensors) {
    check_like(t, x, tensors[0].scalar_type(), m * x.size(1) / norms.count, "prologue");
    t = row_major(t);
  }
  const DType type = weight_dtype(tensors[0], x);
  for (int i = 0; i < norms.count; ++i) {
    const Tensor* t = tensors.data() + 4 * i;
    norms.at[i] = {type, t[0].data_ptr(), t[1].data_ptr(), t[2].data_ptr(), t[3].data_ptr()};
  }
  return norms;
}

template <class Runner>
SkOutputs sk_forward(std::vector<Tensor> x, Tensor w_reduce, OptionalTensor b_reduce,
                     OptionalTensor weight, OptionalTensor bias, Tensor w_select,
                     OptionalTensor b_select, OptionalTensor mean, OptionalTensor var,
                     std::vector<Tensor> running, bool of_batch, double momentum, double eps,
                     bool relu, std::vector<Tensor> prologue, double prologue_eps,
                     std::int64_t prologue_act, double prologue_param) {
  check_branches(x);
  SkForward p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  const index_t n = p.map.n, c = p.map.c, m = static_cast<index_t>(x.size());
  const ScalarType acc = acc_type(x[0].scalar_type());
  OptionalTensor w1 = w_reduce, w2 = w_select;
  p.network =
      sk_network(x[0], m, w1, b_reduce, weight, bias, w2, b_select, mean, var, of_batch, eps, relu);
  const index_t d = p.network.d;
  const SkRows rows(n, p.network.norm);
  STD_TORCH_CHECK(n > 1 || !of_batch, "chattn_cuda::sk: statistics of fewer than two samples");

  Tensor y = new_map(x[0]);
  Tensor pooled = new_tensor(x[0], {n, c}, acc);
  Tensor hidden = new_tensor(x[0], {rows.count, d}, acc);
  Tensor logits = new_tensor(x[0], {n, m, c}, acc);
  if (n == 0) return {y, pooled, hidden, logits};
  p.x = in_place(x, p.map);
  OptionalTensor numbers;
  if (prologue.size() == 1) numbers = prologue[0];
  set_prologue(p.x, numbers, prologue_act, prologue_param, x[0]);
  if (prologue.size() > 1) p.norms = branch_norms(prologue, prologue_eps, x[0], m);
  if (of_batch) {
    p.running = running_statistics(running, momentum, d, x[0]);
    p.mean = row_of(hidden, rows.statistics, d, p.map);
    p.variance = row_of(hidden, rows.statistics + 1, d, p.map);
  }
  p.pooled = pooled.data_ptr();
  p.activated = hidden.data_ptr();
  if (rows.statistics > n) p.hidden = row_of(hidden, rows.before, d, p.map);
  p.logits = logits.data_ptr();
  p.y = y.data_ptr();
  Runner::run(x[0], p);
  return {y, pooled, hidden, logits};
}
// The norm is by mean and var or, with of_batch, by those of the batch; with neither there is none.
// running: ops/running.h.
// prologue: nothing; scale and shift, (2, M, C) accumulators; or weight, bias, running mean and
// variance of a batch norm of all branches, or of each. prologue_act: the code of what follows
// them. hidden: rows of d. The activated values of N samples; with a norm those before it; of the
// batch their mean and variance.
CHATTN_OPERATOR(sk_forward,
                "(Tensor[] branches, Tensor w_reduce, Tensor? b_reduce, Tensor? weight, "
                "Tensor? bias, Tensor w_select, Tensor? b_select, Tensor? mean, Tensor? var, "
                "Tensor(a!)[] running, bool of_batch, float momentum, float eps, bool relu, "
                "Tensor[] prologue, float prologue_eps, int prologue_act, float prologue_param) -> "
                "(Tensor y, Tensor pooled, Tensor hidden, Tensor logits)");

template <class Runner>
SkGradients sk_backward(Tensor dy, OptionalTensor dlogits, std::vector<Tensor> x, Tensor w_reduce,
                        OptionalTensor weight, Tensor w_select, OptionalTensor mean,
                        OptionalTensor var, bool of_batch, double eps, bool relu, Tensor pooled,
                        Tensor hidden, Tensor logits, bool stacked, std::int64_t wanted) {
  check_branches(x);
  check_gradient(dy, x[0]);
  SkBackward p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  const index_t n = p.map.n, c = p.map.c, m = static_cast<index_t>(x.size());
  const ScalarType acc = acc_type(x[0].scalar_type());
  STD_TORCH_CHECK(n > 0, "chattn_cuda::sk: sk_backward takes a batch of one or more");
  OptionalTensor w1 = w_reduce, w2 = w_select, none;
  p.network = sk_network(x[0], m, w1, none, weight, none, w2, none, mean, var, of_batch, eps, relu);
  const index_t d = p.network.d;
  const SkRows rows(n, p.network.norm);
  check_like(pooled, x[0], acc, n * c, "pooled");
  check_like(hidden, x[0], acc, rows.count * d, "hidden");
  check_like(logits, x[0], acc, n * m * c, "logits");
  if (dlogits) check_like(*dlogits, x[0], acc, n * m * c, "dlogits");
  constexpr int kBranches = 6;
  const bool need_dx = (wanted >> kBranches & 1) != 0;
  stacked = stacked && need_dx;
  STD_TORCH_CHECK(!stacked || aligned_slices(p.map),
                  "chattn_cuda::sk: slices of a stacked gradient must start on 16-byte boundaries");
  STD_TORCH_CHECK(p.network.norm != SkNetwork::Norm::none || (wanted & 0b1100) == 0,
                  "chattn_cuda::sk: gradients of a norm that there is not");

  std::vector<Tensor> dx, dnetwork;
  if (need_dx) p.dx = new_branches(dx, x[0], static_cast<int>(m), p.map, stacked);
  const auto gradient = [&](int i, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                            ScalarType type) -> void* {
    if ((wanted >> i & 1) == 0) return nullptr;
    dnetwork.push_back(new_tensor(x[0], sizes, type));
    return dnetwork.back().data_ptr();
  };
  const ScalarType of_norm = weight ? weight->scalar_type() : acc;
  p.dw_reduce = gradient(0, w_reduce.sizes(), w_reduce.scalar_type());
  p.db_reduce = gradient(1, {d}, w_reduce.scalar_type());
  p.dweight = gradient(2, {d}, of_norm);
  p.dbias = gradient(3, {d}, of_norm);
  p.dw_select = gradient(4, w_select.sizes(), w_select.scalar_type());
  p.db_select = gradient(5, {m * c}, w_select.scalar_type());
  p.x = in_place(x, p.map);
  dy = in_format(dy, p.map.channels_last);
  dlogits = row_major(dlogits);
  pooled = row_major(pooled);
  hidden = row_major(hidden);
  logits = row_major(logits);
  p.dy = dy.data_ptr();
  p.dlogits = pointer(dlogits);
  if (of_batch) {
    p.network.mean = row_of(hidden, rows.statistics, d, p.map);
    p.network.variance = row_of(hidden, rows.statistics + 1, d, p.map);
  }
  p.pooled = pooled.data_ptr();
  p.activated = hidden.data_ptr();
  if (rows.statistics > n) p.hidden = row_of(hidden, rows.before, d, p.map);
  p.logits = logits.data_ptr();
  if (wanted != 0) Runner::run(x[0], p);
  return {dx, dnetwork};
}
// wanted: bit i asks for the gradient of w_reduce, b_reduce, weight, bias, w_select, b_select, in
// this order, which is dnetwork's; bit 6 for the branches'.
CHATTN_OPERATOR(sk_backward,
                "(Tensor dy, Tensor? dlogits, Tensor[] branches, Tensor w_reduce, Tensor? weight, "
                "Tensor w_select, Tensor? mean, Tensor? var, bool of_batch, float eps, bool relu, "
                "Tensor pooled, Tensor hidden, Tensor logits, bool stacked, int wanted) -> "
                "(Tensor[] dbranches, Tensor[] dnetwork)");

}  // namespace
}  // namespace chattn::ops
