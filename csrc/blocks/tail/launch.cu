// A fused tail on a GPU: folds, the numbers between them, and emits.
#include "blocks/tail/any.cuh"
#include "blocks/tail/elements.cuh"
#include "blocks/tail/numbers.cuh"
#include "blocks/tail/plan.h"
#include "engine/cuda/apply.cuh"
#include "engine/cuda/reduce.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// ---- the gates of the apply pass
template <class A>
struct TailGate {
  using Element = TailElement<A>;
  static constexpr int kShared = 0;
  const A *numbers, *gate;  // gate null: 1
  int c;

  CHATTN_DEVICE void prepare(const Shared<A>&, const Shared<A>& tiles, const TilePlace& p) const {
    for_gates(p, [&](int m, int i) {
      const int channel = p.c0 + i, t = m * kApplyChannels + i;
      const A g = gate == nullptr ? A(1) : ld(gate + (p.n0 + m) * c + channel);
      tiles.st(Element::kScale * kTileSize + t, g * ld(numbers + kTailScale * c + channel));
      tiles.st(Element::kShift * kTileSize + t, g * ld(numbers + kTailShift * c + channel));
    });
  }
};

template <class A>
struct TailGradientGate {
  using Element = TailGradientElement<A>;
  static constexpr int kShared = 0;
  const A *numbers, *gate, *dpooled, *lost;  // all but numbers may be null
  int c;
  A per_position;  // 1 / HW

  CHATTN_DEVICE void prepare(const Shared<A>&, const Shared<A>& tiles, const TilePlace& p) const {
    for_gates(p, [&](int m, int i) {
      const int channel = p.c0 + i, plane = (p.n0 + m) * c + channel, t = m * kApplyChannels + i;
      const A scale = ld(numbers + kTailScale * c + channel);
      const A g = gate == nullptr ? A(1) : ld(gate + plane);
      A each = dpooled == nullptr ? A(0) : scale * (ld(dpooled + plane) * per_position), slope = 0;
      if (lost != nullptr) {
        each -= ld(lost + channel);
        slope = ld(lost + c + channel);
      }
      tiles.st(Element::kScale * kTileSize + t, g * scale);
      tiles.st(Element::kShift * kTileSize + t, g * ld(numbers + kTailShift * c + channel));
      tiles.st(Element::kEach * kTileSize + t, each);
      tiles.st(Element::kSlope * kTileSize + t, slope);
      tiles.st(Element::kMean * kTileSize + t, ld(numbers + kTailMean * c + channel));
    });
  }
};

// ---- the launches
namespace {
using T = CHATTN_T;
using A = acc_t<T>;

const A* accumulators(const void* p) { return static_cast<const A*>(p); }
const T* elements(const void* p) { return static_cast<const T*>(p); }

LaunchConfig per_channel(index_t c, void* stream, std::size_t shared) {
  return blocks_of_threads(ceil_div(c, kTailChannels), stream, shared);
}

Status launch_moments(const TailSqueeze& p, const ReducePlan& plan, bool inner, A* parts,
                      void* stream) {
  ReduceIo<T, MomentsOp<T>> io{};
  io.in[0] = elements(p.x);
  for (int o = 0; o < 4; ++o) io.out[o] = parts + o * plan.splits * p.map.planes();
  io.sample_planes = p.map.c;
  io.op.inner = Activation<A>(p.functions.inner, p.functions.inner_param);
  if (inner) io.op.numbers = accumulators(p.numbers);
  return launch_reduce(inner ? "tail_pool" : "tail_moments", plan, p.map, io, stream);
}

StatisticsArgs<T> statistics_args(const TailSqueeze& p) {
  StatisticsArgs<T> args{};
  const auto numbers = [](const void* of, DType type) { return Weights<T>{of, is_wide<T>(type)}; };
  args.weight = numbers(p.norm.weight, p.norm.affine_dtype);
  args.bias = numbers(p.norm.bias, p.norm.affine_dtype);
  args.running_mean = numbers(p.norm.mean, p.norm.statistics_dtype);
  args.running_variance = numbers(p.norm.variance, p.norm.statistics_dtype);
  args.running = RunningOut<T>(p.running);
  args.n = static_cast<int>(p.map.n);
  args.c = static_cast<int>(p.map.c);
  args.eps = p.norm.eps;
  return args;
}

template <class Op>
Status launch_sums(const char* name, const TailReduce& p, const ReducePlan& plan, A* parts,
                   void* stream) {
  ReduceIo<T, Op> io{};
  io.in[0] = elements(p.maps.dy);
  io.in[1] = elements(p.maps.x);
  if constexpr (Op::kInputs > 2)
    io.in[2] = reads_residual(p.functions, p.maps) ? elements(p.maps.residual) : nullptr;
  for (int o = 0; o < Op::kOutputs; ++o) io.out[o] = parts + o * plan.splits * p.map.planes();
  io.sample_planes = p.map.c;
  io.op.f = Activations<A>(p.functions, p.maps.mask != nullptr);
  io.op.mask = static_cast<const std::uint8_t*>(p.maps.mask);
  io.op.numbers = accumulators(p.numbers);
  io.op.gate = accumulators(p.gate);
  return launch_reduce(name, plan, p.map, io, stream);
}

template <class Formula>
AnyArgs<T, Formula> any_args(const MapShape& map, const void* numbers, const void* gate) {
  AnyArgs<T, Formula> args{};
  args.rows[Formula::kScale].p = accumulators(numbers) + kTailScale * map.c;
  args.rows[Formula::kShift].p = accumulators(numbers) + kTailShift * map.c;
  args.rows[Formula::kGate] = {accumulators(gate), true, 1};
  args.elements = map.elements();
  args.c = static_cast<int>(map.c);
  args.hw = static_cast<int>(map.hw);
  args.channels_last = map.channels_last;
  return args;
}
LaunchConfig any_blocks(const MapShape& map, void* stream) {
  const index_t per_block = index_t{kThreads} * widest_vector(map.dtype);
  return blocks_of_threads(ceil_div(map.elements(), per_block), stream);
}

}  // namespace

template <>
Status run_as<T>(const TailSqueeze& p, void* scratch, void* stream) {
  const TailSqueezePlan plan = plan_of(p);
  const LaunchConfig config =
      per_channel(p.map.c, stream, sizeof(double) * kStatisticsRows + sizeof(A) * kNormNumbers);
  A* parts = static_cast<A*>(scratch);
  // Moments of x or of what the gate is computed of, for one that takes them.
  const auto fold = [&](bool inner, StatisticsArgs<T>& to) {
    CHATTN_TRY(launch_moments(p, plan.reduce, inner, parts, stream));
    for (Partials<A>& part : to.of_planes) {
      part = {parts, plan.reduce.splits, p.map.planes()};
      parts += plan.reduce.splits * p.map.planes();
    }
    return Status{};
  };
  StatisticsArgs<T> args = statistics_args(p);
  args.numbers = static_cast<A*>(p.numbers);
  args.variance = static_cast<A*>(p.variance);
  args.means = static_cast<A*>(p.means);
  args.pooled = plan.pools ? nullptr : static_cast<A*>(p.pooled);
  if (plan.moments) CHATTN_TRY(fold(false, args));
  CHATTN_TRY(launch("tail_statistics", tail_statistics<T>, config, args));
  if (!plan.pools) return Status{};
  StatisticsArgs<T> means{};
  means.n = args.n;
  means.c = args.c;
  means.means = static_cast<A*>(p.pooled);
  CHATTN_TRY(fold(true, means));
  return launch("tail_means", tail_statistics<T>, config, means);
}

template <>
Status run_as<T>(const TailApply& p, void*, void* stream) {
  const TailApplyPlan plan = plan_of(p);
  const Activations<A> f(p.functions, p.mask != nullptr);
  std::uint8_t* const mask = static_cast<std::uint8_t*>(p.mask);
  if constexpr (sizeof(A) < 8) {
    if (!plan.any) {
      const TailGate<A> gate{accumulators(p.numbers), accumulators(p.gate),
                             static_cast<int>(p.map.c)};
      ApplyIo<T, TailElement<A>> io{};
      io.in[0] = elements(p.x);
      io.in[1] = elements(p.residual);
      io.out[0] = static_cast<T*>(p.y);
      io.element.act = f.act;
      io.element.mask = mask;
      return launch_apply("tail_apply", plan.apply, p.map, io, gate, stream);
    }
  }
  using Formula = AnyTail<A>;
  AnyArgs<T, Formula> args = any_args<Formula>(p.map, p.numbers, p.gate);
  args.in[0] = elements(p.x);
  args.in[1] = elements(p.residual);
  args.out[0] = static_cast<T*>(p.y);
  args.formula.f = f;
  args.formula.mask = mask;
  return launch("tail_apply_any", tail_any<T, Formula>, any_blocks(p.map, stream), args);
}

template <>
Status run_as<T>(const TailReduce& p, void* scratch, void* stream) {
  const TailReducePlan plan = plan_of(p);
  A* const parts = static_cast<A*>(scratch);
  const index_t planes = p.map.planes(), rows = tail_sums(p.functions);
  if constexpr (sizeof(A) < 8) {
    if (plan.sums == 2)
      CHATTN_TRY(launch_sums<TailDotOp<T>>("tail_dot", p, plan.reduce, parts, stream));
  }
  if (plan.sums > 2)
    CHATTN_TRY(launch_sums<TailSumsOp<T>>("tail_reduce", p, plan.reduce, parts, stream));
  // Of five sums those of inner'*g and inner'*g*(x - mean), which are the two.
  const index_t skipped = plan.sums > rows ? plan.reduce.splits * planes : 0;
  const SumsArgs<A> args{parts + skipped,          plan.reduce.splits,
                         static_cast<int>(planes), static_cast<int>(p.map.c),
                         static_cast<int>(rows),   accumulators(p.numbers),
                         static_cast<A*>(p.sums),  static_cast<A*>(p.dgate)};
  return launch("tail_sums", tail_sums<A>, blocks_of_threads(ceil_div(planes, kThreads), stream),
                args);
}

template <>
Status run_as<T>(const TailGradient& p, void* scratch, void* stream) {
  const int c = static_cast<int>(p.map.c);
  const bool finds = p.of_batch && p.dx != nullptr && p.lost == nullptr;
  A* const found = finds ? static_cast<A*>(scratch) : nullptr;
  const A* const lost = finds ? found : accumulators(p.lost);
  if (found != nullptr || p.dweight != nullptr || p.dbias != nullptr) {
    const bool wide = is_wide<T>(p.norm.affine_dtype);
    const NormArgs<T> args{accumulators(p.sums),
                           accumulators(p.means),
                           accumulators(p.dpooled),
                           accumulators(p.gate),
                           accumulators(p.numbers),
                           static_cast<int>(p.map.n),
                           c,
                           static_cast<int>(tail_sums(p.functions)),
                           static_cast<double>(p.map.hw),
                           1 / static_cast<double>(p.map.hw),
                           {p.dweight, wide},
                           {p.dbias, wide},
                           found};
    CHATTN_TRY(launch("tail_norm", tail_norm<T>,
                      per_channel(p.map.c, stream, sizeof(double) * 2 * kThreads), args));
  }
  if (p.dx == nullptr && p.dresidual == nullptr) return Status{};
  const Activations<A> f(p.functions, p.maps.mask != nullptr);
  const std::uint8_t* const mask = static_cast<const std::uint8_t*>(p.maps.mask);
  const TailGradientPlan plan = plan_of(p);
  if constexpr (sizeof(A) < 8) {
    if (!plan.any) {
      const TailGradientGate<A> gate{
          accumulators(p.numbers),        accumulators(p.gate), accumulators(p.dpooled), lost, c,
          A(1) / static_cast<A>(p.map.hw)};
      ApplyIo<T, TailGradientElement<A>> io{};
      io.in[0] = elements(p.maps.dy);
      io.in[1] = elements(p.maps.x);
      io.out[0] = static_cast<T*>(p.dx);
      io.out[1] = static_cast<T*>(p.dresidual);
      io.element.f = f;
      io.element.mask = mask;
      return launch_apply("tail_gradient", plan.apply, p.map, io, gate, stream);
    }
  }
  using Formula = AnyTailGradient<A>;
  AnyArgs<T, Formula> args = any_args<Formula>(p.map, p.numbers, p.gate);
  args.in[0] = elements(p.maps.dy);
  args.in[1] = elements(p.maps.x);
  args.in[2] = reads_residual(p.functions, p.maps) ? elements(p.maps.residual) : nullptr;
  args.out[0] = static_cast<T*>(p.dx);
  args.out[1] = static_cast<T*>(p.dresidual);
  args.rows[Formula::kMean].p = accumulators(p.numbers) + kTailMean * p.map.c;
  args.rows[Formula::kPooled] = {accumulators(p.dpooled), true, 0};
  args.rows[Formula::kConstant].p = lost;
  args.rows[Formula::kSlope].p = lost == nullptr ? nullptr : lost + c;
  args.formula = {f, A(1) / static_cast<A>(p.map.hw), mask};
  return launch("tail_gradient_any", tail_any<T, Formula>, any_blocks(p.map, stream), args);
}

}  // namespace chattn::cuda
