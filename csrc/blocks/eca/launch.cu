// The launches of efficient channel attention.
#include "blocks/eca/gate.cuh"
#include "blocks/eca/plan.h"
#include "blocks/eca/stage.cuh"
#include "engine/cuda/reduce.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {
namespace {

using T = CHATTN_T;
using A = acc_t<T>;

Convolution<T> convolution(const MapShape& map, const ConvGate& gate, const void* weight) {
  Convolution<T> conv;
  conv.n = static_cast<int>(map.n);
  conv.c = static_cast<int>(map.c);
  conv.taps = static_cast<int>(gate.taps);
  conv.reach = static_cast<int>(gate.reach());
  conv.per_channel = gate.per_channel;
  conv.circular = gate.circular;
  conv.gate = gate.gate;
  conv.hw = static_cast<A>(map.hw);
  conv.w = {weight, is_wide<T>(gate.weight_dtype)};
  return conv;
}

Status launch_weight_gradient(const EcaBackward& p, const ConvGradPlan& plan,
                              const ConvGradArgs<T>& args, void* stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.channel_tiles), static_cast<unsigned>(plan.splits),
                     static_cast<unsigned>(plan.tap_tiles));
  config.block = dim3(kThreads);
  config.stream = stream;
  if (p.gate.per_channel) {
    config.shared_bytes = sizeof(A) * kGradTaps * kThreads;
    CHATTN_TRY(launch("eca_weight_parts", conv_weight_parts<T, true>, config, args));
  } else {
    config.shared_bytes = sizeof(A) * kGradTaps * kWarps;
    CHATTN_TRY(launch("eca_weight_parts", conv_weight_parts<T, false>, config, args));
  }
  const int count = static_cast<int>(p.gate.weights(p.map.c));
  const Partials<A> part{args.part, plan.parts(p.gate), count};
  const WeightsOut<T> out{p.dweight, args.conv.w.wide};
  const auto sum = p.gate.per_channel ? conv_weight_sum<T, 1> : conv_weight_sum<T, kWarp>;
  const index_t threads = index_t{count} * (p.gate.per_channel ? 1 : kWarp);
  config.grid = dim3(static_cast<unsigned>(ceil_div(threads, kThreads)));
  config.shared_bytes = 0;
  return launch("eca_weight_sum", sum, config, part, count, out);
}

}  // namespace

template <>
Status run_as<T>(const EcaForward& p, void* scratch, void* stream) {
  const EcaPlan plan = plan_eca(p.map, p.gate);
  const Convolution<T> conv = convolution(p.map, p.gate, p.weight);
  const T* const x = static_cast<const T*>(p.x);
  A* const pooled = static_cast<A*>(p.pooled);
  A* const scale = static_cast<A*>(p.scale);
  if (plan.stage.fits) {
    StageArgs<T> args{};
    args.conv = conv;
    args.plan = plan.stage;
    args.x = x;
    args.y = static_cast<T*>(p.y);
    args.pooled = pooled;
    args.scale = scale;
    return launch_stage("eca_stage", args, p.map, stream);
  }
  A* const sums = static_cast<A*>(scratch);
  const ReduceIo<T, SumOp<T>> in{{x}, {sums}, nullptr, {}};
  CHATTN_TRY(launch_reduce("squeeze", plan.reduce, p.map, in, stream));
  const ConvForwardGate<T> gate{conv, {sums, plan.reduce.splits, p.map.planes()}, pooled, scale};
  const ApplyIo<T, Scale> io{{x}, {static_cast<T*>(p.y)}};
  return launch_apply("eca_rescale", plan.apply, p.map, io, gate, stream);
}

template <>
Status run_as<T>(const EcaBackward& p, void* scratch, void* stream) {
  const EcaPlan plan = plan_eca(p.map, p.gate);
  const EcaScratch at = EcaScratch::make(plan, p.map, p.gate, true, p.dweight != nullptr);
  A* const work = static_cast<A*>(scratch);
  const T* const dy = static_cast<const T*>(p.dy);
  const T* const x = static_cast<const T*>(p.x);

  const ReduceIo<T, DotOp<T>> in{{dy, x}, {work}, nullptr, {}};
  CHATTN_TRY(launch_reduce("eca_dot", plan.reduce, p.map, in, stream));

  const Convolution<T> conv = convolution(p.map, p.gate, p.weight);
  const ConvGateGrad<A> dz{{work, plan.reduce.splits, p.map.planes()},
                           static_cast<const A*>(p.dgate),
                           static_cast<const A*>(p.scale)};
  if (p.dweight != nullptr) {
    const ConvGradArgs<T> args{conv, dz, static_cast<const A*>(p.pooled), work + at.weights};
    CHATTN_TRY(launch_weight_gradient(p, plan.grad, args, stream));
  }
  if (p.dx == nullptr) return Status{};
  const ConvBackwardGate<T> gate{conv, dz};
  const ApplyIo<T, typename ConvBackwardGate<T>::Element> io{{dy}, {static_cast<T*>(p.dx)}};
  return launch_apply("eca_gradient", plan.apply, p.map, io, gate, stream);
}

}  // namespace chattn::cuda
