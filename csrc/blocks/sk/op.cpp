// The operators of the selective kernel: memory-safety checks, allocation, schema.
#include <vector>

#include "blocks/sk/plan.h"
#include "engine/cuda/plans.h"
#include "ops/branches.h"
#include "ops/register.h"

namespace chattn::ops {
namespace {

template <class Runner>
Tensor sk_squeeze(std::vector<Tensor> x, std::optional<Tensor> prologue, std::int64_t act,
                  double act_param) {
  check_branches(x);
  SkSqueeze p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  Tensor pooled = new_tensor(x[0], {p.map.n, p.map.c}, acc_type(x[0].scalar_type()));
  if (p.map.n > 0) {
    p.x = in_place(x, p.map);
    set_prologue(p.x, prologue, act, act_param, x[0]);
    p.pooled = pooled.data_ptr();
    Runner::run(x[0], p);
  }
  return pooled;
}
// act: the code of the prologue's activation.
CHATTN_OPERATOR(sk_squeeze,
                "(Tensor[] branches, Tensor? prologue=None, int act=1, float act_param=0.0) -> "
                "Tensor pooled");

template <class Runner>
Tensor sk_select(std::vector<Tensor> x, Tensor logits, std::optional<Tensor> prologue,
                 std::int64_t act, double act_param) {
  check_branches(x);
  SkSelect p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  const index_t n = p.map.n, c = p.map.c, m = static_cast<index_t>(x.size());
  check_like(logits, x[0], acc_type(x[0].scalar_type()), n * m * c, "logits");
  Tensor y = new_map(x[0]);
  if (n > 0) {
    p.x = in_place(x, p.map);
    set_prologue(p.x, prologue, act, act_param, x[0]);
    logits = row_major(logits);
    p.logits = logits.data_ptr();
    p.y = y.data_ptr();
    Runner::run(x[0], p);
  }
  return y;
}
CHATTN_OPERATOR(sk_select,
                "(Tensor[] branches, Tensor logits, Tensor? prologue=None, int act=1, "
                "float act_param=0.0) -> Tensor y");

template <class Runner>
Tensor sk_dot(Tensor dy, Tensor logits, std::vector<Tensor> x) {
  check_branches(x);
  SkDot p;
  p.map = map_shape(x[0], is_channels_last(x[0]));
  const index_t n = p.map.n, c = p.map.c, m = static_cast<index_t>(x.size());
  const ScalarType acc = acc_type(x[0].scalar_type());
  check_gradient(dy, x[0]);
  check_like(logits, x[0], acc, n * m * c, "logits");
  Tensor dlogits = new_tensor(x[0], {n, m, c}, acc);
  if (n > 0) {
    p.x = in_place(x, p.map);
    dy = in_format(dy, p.map.channels_last);
    logits = row_major(logits);
    p.dy = dy.data_ptr();
    p.logits = logits.data_ptr();
    p.dlogits = dlogits.data_ptr();
    Runner::run(x[0], p);
  }
  return dlogits;
}
CHATTN_OPERATOR(sk_dot, "(Tensor dy, Tensor logits, Tensor[] branches) -> Tensor dlogits");

template <class Runner>
std::vector<Tensor> sk_gradient(Tensor dy, Tensor logits, std::optional<Tensor> dpooled,
                                bool channels_last, bool stacked) {
  STD_TORCH_CHECK(dy.dim() == 4 && dy.size(1) >= 1 && dy.size(2) >= 1 && dy.size(3) >= 1,
                  "chattn_cuda::sk: dy must be 4-D, with C, H and W at least 1");
  STD_TORCH_CHECK(logits.dim() == 3 && logits.size(1) >= 1 && logits.size(1) <= kMaxBranches,
                  "chattn_cuda::sk: logits must be (N, M, C) of 1 to ", kMaxBranches, " branches");
  SkGradient p;
  p.map = map_shape(dy, channels_last);
  const int count = static_cast<int>(logits.size(1));
  const ScalarType acc = acc_type(dy.scalar_type());
  check_like(logits, dy, acc, count * p.map.planes(), "logits");
  if (dpooled) check_like(*dpooled, dy, acc, p.map.planes(), "dpooled");
  STD_TORCH_CHECK(!stacked || aligned_slices(p.map),
                  "chattn_cuda::sk: slices of a stacked gradient must start on 16-byte boundaries");
  std::vector<Tensor> dx;
  p.dx = new_branches(dx, dy, count, p.map, stacked);
  if (p.map.n > 0) {
    dy = in_format(dy, channels_last);
    logits = row_major(logits);
    dpooled = row_major(dpooled);
    p.dy = dy.data_ptr();
    p.logits = logits.data_ptr();
    p.dpooled = pointer(dpooled);
    Runner::run(dy, p);
  }
  return dx;
}
CHATTN_OPERATOR(sk_gradient,
                "(Tensor dy, Tensor logits, Tensor? dpooled, bool channels_last, bool stacked) -> "
                "Tensor[] dbranches");

const cuda::RegisteredPlan kPlan("sk", [](const MapShape& map, Options& options, bool backward) {
  const int m = branches_of(options).count;
  SkNetwork network;
  network.set(map, options);
  if (network.d == 0) return cuda::describe_sk(map, m, backward);
  return cuda::describe_sk_block(map, m, network.d, network.norm, backward);
});

}  // namespace
}  // namespace chattn::ops
