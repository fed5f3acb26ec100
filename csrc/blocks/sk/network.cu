// The launches of the selective kernel with its network. The passes over the maps are passes.cu's.
#include "blocks/sk/network.cuh"
#include "blocks/sk/passes.h"
#include "engine/cuda/launch.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

namespace {

using T = CHATTN_T;
using A = acc_t<T>;

UnitNorm<T> unit_norm(const SkNetwork& network) {
  const bool affine = is_wide<T>(network.affine_dtype);
  const bool statistics = is_wide<T>(network.statistics_dtype);
  return {{network.mean, statistics},
          {network.variance, statistics},
          {network.weight, affine},
          {network.bias, affine},
          static_cast<A>(network.eps)};
}

LaunchConfig per_unit(index_t d, void* stream) {
  return blocks_of_threads(norm_blocks(d), stream, sizeof(double) * 2 * kWarps * kNormUnits);
}

// Where the parts of the scratch memory lie.
struct SkWork {
  A* base;
  SkPlan plan;
  SkScratch at;
  SkWork(const SkPlan& p, const SkScratch& s, void* scratch)
      : base(static_cast<A*>(scratch)), plan(p), at(s) {}

  Arrivals all_arrivals() const {
    return {reinterpret_cast<unsigned*>(base + at.arrivals),
            plan.hidden.counters() + plan.second.counters()};
  }
  ProductScratch<A> hidden() const { return {base + at.hidden, all_arrivals()}; }
  ProductScratch<A> second() const {
    Arrivals own = all_arrivals();
    own.counters += plan.hidden.counters();
    return {base + at.second, own};
  }
};

Status launch_norm_prologue(const SkForward& p, A* prologue, void* stream) {
  PrologueArgs<T> args{};
  args.rows = static_cast<int>(p.x.count * p.map.c);
  args.each = args.rows / p.norms.count;
  args.prologue = prologue;
  for (int q = 0; q < p.norms.count; ++q) {
    const SkBranchNorms::One& norm = p.norms.at[q];
    const bool wide = is_wide<T>(norm.dtype);
    args.norm[q] = {{norm.mean, wide},
                    {norm.variance, wide},
                    {norm.weight, wide},
                    {norm.bias, wide},
                    static_cast<A>(p.norms.eps)};
  }
  return launch("sk_prologue", norm_prologue<T>,
                blocks_of_threads(ceil_div(args.rows, kThreads), stream), args);
}

}  // namespace

template <>
Status run_as<T>(const SkForward& p, void* scratch, void* stream) {
  const SkNetwork& network = p.network;
  const index_t n = p.map.n, c = p.map.c, d = network.d, rows = p.x.count * c;
  const bool norms = p.norms.count > 0;
  const SkPlan plan = plan_sk(p.map, p.x, norms || p.x.prologue, d, false);
  const SkWork work(plan, SkScratch::make(plan, p.map, p.x.count, d, norms, false), scratch);
  Branches x = p.x;
  if (norms) {
    x.prologue = work.base + work.at.prologue;
    CHATTN_TRY(launch_norm_prologue(p, work.base + work.at.prologue, stream));
  }
  A* const sums =
      plan.sums_in_logits(p.x.count) ? static_cast<A*>(p.logits) : work.base + work.at.sums;
  CHATTN_TRY(launch_squeeze<T>(p.map, x, sums, work.all_arrivals(), stream));

  const int samples = static_cast<int>(n), units = static_cast<int>(d);
  const SummedRows<A> pooled{{sums, plan.reduce.splits, p.map.planes()},
                             samples,
                             static_cast<int>(c),
                             A(1) / static_cast<A>(p.map.hw),
                             static_cast<A*>(p.pooled)};
  const bool of_batch = network.norm == SkNetwork::Norm::of_batch;
  A *const hidden = static_cast<A*>(p.hidden), *const activated = static_cast<A*>(p.activated);
  const UnitOut<T> out{{network.reduce.b, is_wide<T>(network.reduce.dtype)},
                       unit_norm(network),
                       network.relu,
                       hidden,
                       of_batch ? nullptr : activated};
  const WeightColumns<T, true> w1{
      {network.reduce.w, is_wide<T>(network.reduce.dtype)}, static_cast<int>(c), units};
  CHATTN_TRY(launch_product("sk_hidden", plan.hidden, pooled, w1, out, work.hidden(), stream));
  if (of_batch) {
    BatchNormArgs<T> args{};
    args.samples = samples;
    args.d = units;
    args.norm = unit_norm(network);
    args.relu = network.relu;
    args.hidden = hidden;
    args.activated = activated;
    args.mean = static_cast<A*>(p.mean);
    args.variance = static_cast<A*>(p.variance);
    args.running = RunningOut<T>(p.running);
    CHATTN_TRY(launch("sk_norm", norm_of_batch<T>, per_unit(d, stream), args));
  }
  const bool wide = is_wide<T>(network.select.dtype);
  const WeightColumns<T, true> w2{{network.select.w, wide}, units, static_cast<int>(rows)};
  const BiasedOut<T> logits{{network.select.b, wide}, static_cast<A*>(p.logits)};
  const SummedRows<A> act{{activated, 1, 0}, samples, units};
  CHATTN_TRY(launch_product("sk_logits", plan.second, act, w2, logits, work.second(), stream));
  return run_as<T>(SkSelect{p.map, x, p.logits, p.y}, nullptr, stream);
}

template <>
Status run_as<T>(const SkBackward& p, void* scratch, void* stream) {
  const SkNetwork& network = p.network;
  const index_t n = p.map.n, c = p.map.c, d = network.d, rows = p.x.count * c;
  const SkPlan plan = plan_sk(p.map, p.x, false, d, true);
  const SkWork work(plan, SkScratch::make(plan, p.map, p.x.count, d, network.normalises(), true),
                    scratch);
  A *const dlogits = work.base + work.at.dlogits, *const dhidden = work.base + work.at.dhidden;
  A* const dbefore = work.base + work.at.dbefore;
  A* const dpooled = work.base + work.at.dpooled;
  const bool wide1 = is_wide<T>(network.reduce.dtype), wide2 = is_wide<T>(network.select.dtype);

  CHATTN_TRY(launch_dot<T>({p.map, p.x, p.dy, p.logits, dlogits}, static_cast<const A*>(p.dlogits),
                           work.base, work.all_arrivals(), stream));
  const int samples = static_cast<int>(n), units = static_cast<int>(d);
  const SummedRows<A> of_logits{{dlogits, 1, 0}, samples, static_cast<int>(rows)};
  const WeightColumns<T, false> w2{{network.select.w, wide2}, static_cast<int>(rows), units};
  const ActivationGradOut<A> before_act{network.relu ? Act::relu : Act::identity, A(0),
                                        static_cast<const A*>(p.activated), dhidden};
  CHATTN_TRY(launch_product("sk_hidden_grad", plan.hidden, of_logits, w2, before_act, work.hidden(),
                            stream));

  const bool of_batch = network.norm == SkNetwork::Norm::of_batch;
  if (network.normalises()) {
    const bool affine = is_wide<T>(network.affine_dtype);
    NormGradientArgs<T> args{};
    args.samples = samples;
    args.d = units;
    args.norm = unit_norm(network);
    args.of_batch = of_batch;
    args.hidden = static_cast<const A*>(p.hidden);
    args.grad = dhidden;
    args.result = dbefore;
    args.dweight = {p.dweight, affine};
    args.dbias = {p.dbias, affine};
    if (of_batch) args.db_reduce = {p.db_reduce, wide1};
    CHATTN_TRY(launch("sk_norm_grad", norm_gradient<T>, per_unit(d, stream), args));
  }

  const OuterProduct<T> dw1{dbefore,
                            static_cast<const A*>(p.pooled),
                            static_cast<int>(d),
                            static_cast<int>(c),
                            {p.dw_reduce, wide1},
                            {of_batch ? nullptr : p.db_reduce, wide1}};
  const OuterProduct<T> dw2{dlogits,
                            static_cast<const A*>(p.activated),
                            static_cast<int>(rows),
                            static_cast<int>(d),
                            {p.dw_select, wide2},
                            {p.db_select, wide2}};
  if (const int blocks = dw1.blocks() + dw2.blocks(); blocks > 0) {
    const LaunchConfig config =
        blocks_of_threads(blocks, stream, sizeof(A) * OuterTile<A>::kOperands);
    CHATTN_TRY(launch("sk_weight_grads", outer_products<T>, config, samples, dw2, dw1));
  }
  if (p.dx.at[0] == nullptr) return Status{};

  const SummedRows<A> of_hidden{{dbefore, 1, 0}, samples, units};
  const WeightColumns<T, false> w1{{network.reduce.w, wide1}, units, static_cast<int>(c)};
  const BiasedOut<T> out{{}, dpooled};
  CHATTN_TRY(
      launch_product("sk_pooled_grad", plan.second, of_hidden, w1, out, work.second(), stream));
  return run_as<T>(SkGradient{p.map, p.dy, p.logits, dpooled, p.dx}, nullptr, stream);
}

}  // namespace chattn::cuda
