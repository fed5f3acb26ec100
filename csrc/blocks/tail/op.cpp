// The operators of a fused tail: memory-safety checks, allocation, schemas.
#include <tuple>
#include <vector>

#include "blocks/tail/plan.h"
#include "engine/cuda/plans.h"
#include "ops/register.h"
#include "ops/running.h"
#include "ops/tensor.h"

namespace chattn::ops {
namespace {

using OptionalTensor = std::optional<Tensor>;

void check_map(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) >= 1 && x.size(2) >= 1 && x.size(3) >= 1,
                  "chattn_cuda::tail: x must be 4-D, with C, H and W at least 1");
}

TailFunctions tail_functions(std::int64_t inner, double inner_param, std::int64_t act,
                             double act_param) {
  STD_TORCH_CHECK(inner >= 0 && inner < kActCount && act >= 0 && act < kActCount,
                  "chattn_cuda::tail: unknown activation code");
  return {static_cast<Act>(inner), static_cast<Act>(act), inner_param, act_param};
}

// A vector of accumulators or rows of them, dense; null where it is not there.
const void* accumulators(OptionalTensor& t, const Tensor& x, index_t count, const char* name) {
  if (!t) return nullptr;
  check_like(*t, x, acc_type(x.scalar_type()), count, name);
  t = row_major(t);
  return t->data_ptr();
}

// A map beside x, in its format.
const void* beside(OptionalTensor& t, const Tensor& x, bool channels_last) {
  if (!t) return nullptr;
  check_gradient(*t, x);
  t = in_format(*t, channels_last);
  return t->data_ptr();
}

// What both directions read; makes it dense.
struct Operands {
  bool channels_last;
  MapShape map;
  TailMaps maps;
  const void *numbers, *gate;

  Operands(Tensor& x, OptionalTensor& residual, OptionalTensor& rows, OptionalTensor& gates)
      : channels_last(is_channels_last(x)) {
    map = map_shape(x, channels_last);
    x = in_format(x, channels_last);
    maps.x = x.data_ptr();
    maps.residual = beside(residual, x, channels_last);
    numbers = accumulators(rows, x, kTailRows * map.c, "numbers");
    gate = accumulators(gates, x, map.planes(), "gate");
  }

  void set_gradient(OptionalTensor& dy, OptionalTensor& mask, const Tensor& x,
                    const TailFunctions& functions) {
    maps.dy = beside(dy, x, channels_last);
    if (!mask) return;
    STD_TORCH_CHECK(functions.is_masked(), "chattn_cuda::tail: a mask of another activation");
    check_like(*mask, x, ScalarType::Byte, MaskShape(map).bytes(), "mask");
    mask = row_major(mask);
    maps.mask = mask->data_ptr();
  }
};

// The type of a norm's tensors, which are made dense.
DType of_norm(OptionalTensor& first, OptionalTensor& second, const Tensor& x, const char* name) {
  std::optional<DType> type;
  for (OptionalTensor* t : {&first, &second}) {
    if (!*t) continue;
    check_like(**t, x, (*t)->scalar_type(), x.size(1), name);
    STD_TORCH_CHECK(type.value_or(dtype(**t)) == weight_dtype(**t, x), "chattn_cuda::tail: ", name,
                    " must have one type");
    type = dtype(**t);
    *t = row_major(*t);
  }
  return type.value_or(dtype(x));
}

template <class Runner>
std::tuple<Tensor, Tensor, Tensor, Tensor> tail_squeeze(
    Tensor x, OptionalTensor weight, OptionalTensor bias, OptionalTensor mean, OptionalTensor var,
    std::vector<Tensor> running, double momentum, double eps, std::int64_t inner,
    double inner_param, bool pool) {
  check_map(x);
  STD_TORCH_CHECK(mean.has_value() == var.has_value(), "chattn_cuda::tail: mean without var");
  TailSqueeze p;
  p.functions = tail_functions(inner, inner_param, 0, 0);
  p.norm.affine_dtype = of_norm(weight, bias, x, "weight and bias");
  p.norm.statistics_dtype = of_norm(mean, var, x, "mean and var");
  p.norm.weight = pointer(weight);
  p.norm.bias = pointer(bias);
  p.norm.mean = pointer(mean);
  p.norm.variance = pointer(var);
  p.norm.eps = eps;
  const index_t n = x.size(0), c = x.size(1);
  const bool of_batch = p.norm.of_batch(), plain = p.functions.inner == Act::identity;
  const ScalarType acc = acc_type(x.scalar_type());
  STD_TORCH_CHECK(n > 0 || !of_batch, "chattn_cuda::tail: statistics of no samples");
  if (of_batch) p.running = running_statistics(running, momentum, c, x);
  Tensor numbers = new_tensor(x, {kTailRows, c}, acc);
  Tensor variance = new_tensor(x, {of_batch ? c : 0}, acc);
  Tensor means = pool && plain ? new_tensor(x, {n, c}, acc) : new_tensor(x, {0}, acc);
  Tensor pooled = pool ? new_tensor(x, {n, c}, acc) : new_tensor(x, {0}, acc);
  const bool channels_last = is_channels_last(x);
  x = in_format(x, channels_last);
  p.map = map_shape(x, channels_last);
  p.x = x.data_ptr();
  p.numbers = numbers.data_ptr();
  p.variance = of_batch ? variance.data_ptr() : nullptr;
  p.means = pool && plain ? means.data_ptr() : nullptr;
  p.pooled = pool ? pooled.data_ptr() : nullptr;
  Runner::run(x, p);
  return {numbers, variance, means, pooled};
}
CHATTN_OPERATOR(
    tail_squeeze,
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, Tensor(a!)[] running, "
    "float momentum, float eps, int inner, float inner_param, bool pool) -> (Tensor numbers, "
    "Tensor variance, Tensor means, Tensor pooled)");

template <class Runner>
std::tuple<Tensor, Tensor> tail_apply(Tensor x, OptionalTensor residual, Tensor numbers,
                                      OptionalTensor gate, std::int64_t inner, double inner_param,
                                      std::int64_t act, double act_param, bool need_mask) {
  check_map(x);
  TailApply p;
  p.functions = tail_functions(inner, inner_param, act, act_param);
  STD_TORCH_CHECK(!need_mask || p.functions.is_masked(),
                  "chattn_cuda::tail: this activation's gradient needs more than a mask");
  Tensor y = new_map(x);
  OptionalTensor rows = numbers;
  const Operands operands(x, residual, rows, gate);
  p.map = operands.map;
  const MaskShape shape(p.map);
  Tensor mask = new_tensor(x, {need_mask ? shape.rows : 0, shape.pitch}, ScalarType::Byte);
  if (x.size(0) > 0) {
    p.x = operands.maps.x;
    p.residual = operands.maps.residual;
    p.numbers = operands.numbers;
    p.gate = operands.gate;
    p.y = y.data_ptr();
    p.mask = need_mask ? mask.data_ptr() : nullptr;
    Runner::run(x, p);
  }
  return {y, mask};
}
CHATTN_OPERATOR(
    tail_apply,
    "(Tensor x, Tensor? residual, Tensor numbers, Tensor? gate, int inner, float inner_param, "
    "int act, float act_param, bool need_mask) -> (Tensor y, Tensor mask)");

template <class Runner>
std::tuple<Tensor, Tensor> tail_reduce(Tensor dy, Tensor x, OptionalTensor residual,
                                       OptionalTensor mask, Tensor numbers, OptionalTensor gate,
                                       std::int64_t inner, double inner_param, std::int64_t act,
                                       double act_param, bool need_dgate) {
  check_map(x);
  TailReduce p;
  p.functions = tail_functions(inner, inner_param, act, act_param);
  const index_t n = x.size(0), c = x.size(1);
  const ScalarType acc = acc_type(x.scalar_type());
  Tensor sums = new_tensor(x, {n, tail_sums(p.functions), c}, acc);
  Tensor dgate = need_dgate ? new_tensor(x, {n, c}, acc) : new_tensor(x, {0}, acc);
  OptionalTensor rows = numbers, gradient = dy;
  Operands operands(x, residual, rows, gate);
  operands.set_gradient(gradient, mask, x, p.functions);
  if (n > 0) {
    p.map = operands.map;
    p.maps = operands.maps;
    p.numbers = operands.numbers;
    p.gate = operands.gate;
    p.sums = sums.data_ptr();
    p.dgate = need_dgate ? dgate.data_ptr() : nullptr;
    Runner::run(x, p);
  }
  return {sums, dgate};
}
CHATTN_OPERATOR(
    tail_reduce,
    "(Tensor dy, Tensor x, Tensor? residual, Tensor? mask, Tensor numbers, Tensor? gate, "
    "int inner, float inner_param, int act, float act_param, bool need_dgate) -> (Tensor sums, "
    "Tensor dgate)");

template <class Runner>
std::tuple<Tensor, Tensor, Tensor, Tensor> tail_gradient(
    Tensor dy, Tensor x, OptionalTensor residual, OptionalTensor mask, Tensor numbers,
    OptionalTensor gate, OptionalTensor sums, OptionalTensor means, OptionalTensor dpooled,
    OptionalTensor weight, OptionalTensor lost, std::int64_t inner, double inner_param,
    std::int64_t act, double act_param, bool of_batch, bool need_dx, bool need_dresidual,
    bool need_dnorm) {
  check_map(x);
  TailGradient p;
  p.functions = tail_functions(inner, inner_param, act, act_param);
  const index_t n = x.size(0), c = x.size(1);
  STD_TORCH_CHECK(sums || !((of_batch && !lost) || need_dnorm),
                  "chattn_cuda::tail: sums are missing");
  OptionalTensor none;
  p.norm.affine_dtype = of_norm(weight, none, x, "weight");
  const ScalarType affine = weight ? weight->scalar_type() : x.scalar_type();
  Tensor dx = new_map(x, need_dx), dresidual = new_map(x, need_dresidual);
  Tensor dweight = new_tensor(x, {need_dnorm ? c : 0}, affine);
  Tensor dbias = new_tensor(x, {need_dnorm ? c : 0}, affine);
  if (n == 0) {
    torch::stable::zero_(dweight);
    torch::stable::zero_(dbias);
    return {dx, dresidual, dweight, dbias};
  }
  OptionalTensor rows = numbers, gradient = dy;
  Operands operands(x, residual, rows, gate);
  operands.set_gradient(gradient, mask, x, p.functions);
  const index_t planes = operands.map.planes();
  p.sums = accumulators(sums, x, planes * tail_sums(p.functions), "sums");
  p.means = accumulators(means, x, planes, "means");
  p.dpooled = accumulators(dpooled, x, planes, "dpooled");
  p.lost = accumulators(lost, x, 2 * c, "lost");
  STD_TORCH_CHECK(!p.dpooled || !p.sums || p.means || p.functions.inner != Act::identity,
                  "chattn_cuda::tail: means are missing");
  p.map = operands.map;
  p.maps = operands.maps;
  p.of_batch = of_batch;
  p.numbers = operands.numbers;
  p.gate = operands.gate;
  p.dx = need_dx ? dx.data_ptr() : nullptr;
  p.dresidual = need_dresidual ? dresidual.data_ptr() : nullptr;
  p.dweight = need_dnorm ? dweight.data_ptr() : nullptr;
  p.dbias = need_dnorm ? dbias.data_ptr() : nullptr;
  Runner::run(x, p);
  return {dx, dresidual, dweight, dbias};
}
CHATTN_OPERATOR(
    tail_gradient,
    "(Tensor dy, Tensor x, Tensor? residual, Tensor? mask, Tensor numbers, Tensor? gate, "
    "Tensor? sums, Tensor? means, Tensor? dpooled, Tensor? weight, Tensor? lost, int inner, "
    "float inner_param, int act, float act_param, bool of_batch, bool need_dx, "
    "bool need_dresidual, bool need_dnorm) -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor "
    "dbias)");

const cuda::RegisteredPlan kPlan("tail", [](const MapShape& map, Options& given, bool backward) {
  const cuda::TailOptions options(given);
  return backward ? cuda::describe_backward(options, map) : cuda::describe_forward(options, map);
});

}  // namespace
}  // namespace chattn::ops
