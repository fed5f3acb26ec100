// The launches of squeeze-and-excitation.
#include "blocks/se/gate.cuh"
#include "blocks/se/mlp.cuh"
#include "blocks/se/plan.h"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/product_launch.cuh"
#include "engine/cuda/reduce.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {
namespace {

using T = CHATTN_T;
using A = acc_t<T>;

MlpShape<A> mlp_shape(const MapShape& map, const MlpGate& gate) {
  MlpShape<A> s;
  s.n = static_cast<int>(map.n);
  s.c = static_cast<int>(map.c);
  s.rd = static_cast<int>(gate.rd);
  s.act = gate.act;
  s.gate = gate.gate;
  s.param = static_cast<A>(gate.act_param);
  s.hw = static_cast<A>(map.hw);
  return s;
}

ProductScratch<A> product_scratch(const SePlan& plan, const SeScratch& at, A* work) {
  return {work + at.parts,
          {reinterpret_cast<unsigned*>(work + at.arrivals), plan.product.counters()}};
}

template <class Plane>
Status launch_finish(const char* name, const MapShape& map, const Plane& plane, void* stream) {
  return launch(name, finish<Plane>, blocks_of_threads(finish_blocks(map), stream), map.planes(),
                plane);
}

// The gradients of the map and of the weights: what is wanted of them.
Status launch_gradient(const SeBackward& p, const SePlan& plan, const SeScratch& at, A* work,
                       bool wide, void* stream) {
  MlpBackwardGate<T> gate{};
  gate.shape = mlp_shape(p.map, p.gate);
  gate.dhidden = work + (p.gate.direct ? at.dz : at.dhidden);
  gate.w1 = {p.gate.direct ? p.w2 : p.w1, wide};
  gate.scale = static_cast<const A*>(p.scale);
  if (p.dw2 != nullptr) {
    WeightGrads<T>& weights = gate.beside;
    weights.shape = gate.shape;
    weights.hidden = static_cast<const A*>(p.hidden);
    weights.dhidden = work + at.dhidden;
    weights.dz = work + at.dz;
    weights.pooled = static_cast<const A*>(p.pooled);
    weights.dw1 = {p.dw1, wide};
    weights.db1 = {p.db1, wide};
    weights.dw2 = {p.dw2, wide};
    weights.db2 = {p.db2, wide};
    weights.blocks = weight_blocks(p.map, p.gate);
  }
  ApplyPlan tiles = plan.apply;
  if (p.dx == nullptr) tiles.sample_tiles = 0;
  const ApplyIo<T, typename MlpBackwardGate<T>::Element> io{{static_cast<const T*>(p.dy)},
                                                            {static_cast<T*>(p.dx)}};
  return launch_apply("se_gradient", tiles, p.map, io, gate, stream);
}

}  // namespace

template <>
Status run_as<T>(const SeForward& p, void* scratch, void* stream) {
  const bool wide = is_wide<T>(p.gate.weight_dtype);
  const SePlan plan = plan_se(p.map, p.gate);
  const SeScratch at = SeScratch::make(plan, p.map, p.gate, false);
  A* const work = static_cast<A*>(scratch);
  const ProductScratch<A> mine = product_scratch(plan, at, work);
  const MlpShape<A> shape = mlp_shape(p.map, p.gate);
  const T* const x = static_cast<const T*>(p.x);

  const ReduceIo<T, SumOp<T>> squeeze{{x}, {work}, nullptr, mine.arrivals};
  CHATTN_TRY(launch_reduce("squeeze", plan.reduce, p.map, squeeze, stream));

  const Partials<A> sums{work, plan.reduce.splits, p.map.planes()};
  A* const pooled = static_cast<A*>(p.pooled);
  if (p.gate.direct) {
    const PooledPlane<A> plane{sums, A(1) / shape.hw, pooled};
    CHATTN_TRY(launch_finish("se_pooled", p.map, plane, stream));
  } else {
    const SummedRows<A> rows{sums, shape.n, shape.c, A(1) / shape.hw, pooled};
    const WeightColumns<T, true> w1{{p.w1, wide}, shape.c, shape.rd};
    const BiasedOut<T> out{{p.b1, wide}, static_cast<A*>(p.hidden)};
    CHATTN_TRY(launch_product("se_hidden", plan.product, rows, w1, out, mine, stream));
  }

  MlpForwardGate<T> gate{};
  gate.shape = shape;
  gate.hidden = static_cast<const A*>(p.hidden);
  gate.w2 = {p.w2, wide};
  gate.b2 = {p.b2, wide};
  gate.scale_out = static_cast<A*>(p.scale);
  const ApplyIo<T, Scale> io{{x}, {static_cast<T*>(p.y)}};
  return launch_apply("se_rescale", plan.apply, p.map, io, gate, stream);
}

template <>
Status run_as<T>(const SeBackward& p, void* scratch, void* stream) {
  const bool wide = is_wide<T>(p.gate.weight_dtype);
  const SePlan plan = plan_se(p.map, p.gate);
  const SeScratch at = SeScratch::make(plan, p.map, p.gate, true);
  A* const work = static_cast<A*>(scratch);
  const ProductScratch<A> mine = product_scratch(plan, at, work);
  const MlpShape<A> shape = mlp_shape(p.map, p.gate);
  const T* const x = static_cast<const T*>(p.x);
  const T* const dy = static_cast<const T*>(p.dy);

  const ReduceIo<T, DotOp<T>> product{{dy, x}, {work}, nullptr, mine.arrivals};
  CHATTN_TRY(launch_reduce("se_dot", plan.reduce, p.map, product, stream));

  const Partials<A> dot{work, plan.reduce.splits, p.map.planes()};
  const A* const scale = static_cast<const A*>(p.scale);
  const A* const dgate = static_cast<const A*>(p.dgate);
  if (p.gate.direct) {
    const GateGradPlane<A> plane{dot, shape.gate, scale, dgate, work + at.dz};
    CHATTN_TRY(launch_finish("se_gate_grad", p.map, plane, stream));
  } else {
    const GateGradRows<A> rows{dot, shape.n, shape.c, shape.gate, scale, dgate, work + at.dz};
    const WeightColumns<T, false> w2{{p.w2, wide}, shape.c, shape.rd};
    const ActivationGradOut<A> out{shape.act, shape.param, static_cast<const A*>(p.hidden),
                                   work + at.dhidden};
    CHATTN_TRY(launch_product("se_hidden_grad", plan.product, rows, w2, out, mine, stream));
  }

  if (p.dx == nullptr && p.dw2 == nullptr) return Status{};
  return launch_gradient(p, plan, at, work, wide, stream);
}

}  // namespace chattn::cuda
