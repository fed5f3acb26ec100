// The launches of the selective kernel's passes.
#include "blocks/sk/gate.cuh"
#include "blocks/sk/passes.h"
#include "blocks/sk/plan.h"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/reduce.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {
namespace {

using T = CHATTN_T;
using A = acc_t<T>;

// body(a constant equal to the number of branches)
template <int M = 1, class Body>
Status with_branches(int count, Body&& body) {
  if (count == M) return body(std::integral_constant<int, M>{});
  if constexpr (M < kMaxBranches) return with_branches<M + 1>(count, body);
  return Status::error("%d branches", count);
}

// How M branches are read: what is summed, and what weighs them.
template <int M>
struct Plain {
  using Sum = SumOp<T, M>;
  using Gate = SoftmaxGate<T, M, false>;
};
template <int M>
struct Rectified {
  using Sum = PrologueSumOp<T, M>;
  using Gate = SoftmaxGate<T, M, true>;
};
template <int M>
struct Activated {
  using Sum = ActivatedSumOp<T, M>;
  using Gate = ActivatedGate<T, M>;
};

// body(their number, how they are read). One branch has a gate of 1, for which the prologue has no
// kernels; more than two come behind a ReLU, and kernels for others would be 2 MB.
template <class Body>
Status with_branches_and_prologue(const Branches& x, Body&& body) {
  return with_branches(x.count, [&](auto m) {
    if (x.prologue == nullptr) return body(m, Plain<m()>{});
    if constexpr (m() > 1) {
      if (x.act == Act::relu) return body(m, Rectified<m()>{});
    }
    if constexpr (m() == 2) {
      return body(m, Activated<m()>{});
    } else {
      return Status::error("no kernels for the prologue of so many branches");
    }
  });
}

template <class Element>
void set_activation(Element& element, const Branches& x) {
  if constexpr (requires { element.act; }) {
    element.act = x.act;
    element.act_param = static_cast<A>(x.act_param);
  }
}

LaunchConfig per_plane(index_t planes, void* stream) {
  return blocks_of_threads(ceil_div(planes, kThreads), stream);
}

}  // namespace

template <>
Status launch_squeeze<T>(const MapShape& map, const Branches& x, A* sums, const Arrivals& arrivals,
                         void* stream) {
  return with_branches_and_prologue(x, [&](auto m, auto way) {
    using Op = typename decltype(way)::Sum;
    ReduceIo<T, Op> io{};
    io.reference = static_cast<const A*>(x.prologue);
    set_activation(io.op, x);
    for (int b = 0; b < m(); ++b) io.in[b] = static_cast<const T*>(x.at[b]);
    io.out[0] = sums;
    io.arrivals = arrivals;
    io.gap = x.gap;
    io.sample_planes = map.c;
    return launch_reduce("sk_squeeze", plan_sk_reduce(map, Op::kStaged, x.gap), map, io, stream);
  });
}

template <>
Status run_as<T>(const SkSqueeze& p, void* scratch, void* stream) {
  A* const sums = static_cast<A*>(scratch);
  CHATTN_TRY(launch_squeeze<T>(p.map, p.x, sums, {}, stream));
  const ReducePlan plan = plan_sk_reduce(p.map, p.x.prologue ? p.x.count : 1, p.x.gap);
  return launch("sk_mean", branch_mean<A>, per_plane(p.map.planes(), stream),
                Partials<A>{sums, plan.splits, p.map.planes()}, static_cast<int>(p.map.planes()),
                static_cast<A>(p.map.hw), static_cast<A*>(p.pooled));
}

template <>
Status run_as<T>(const SkSelect& p, void*, void* stream) {
  return with_branches_and_prologue(p.x, [&](auto m, auto way) {
    using Gate = typename decltype(way)::Gate;
    Gate gate{};
    gate.c = static_cast<int>(p.map.c);
    gate.logits = static_cast<const A*>(p.logits);
    gate.prologue = static_cast<const A*>(p.x.prologue);
    ApplyIo<T, typename Gate::Element> io{};
    set_activation(io.element, p.x);
    for (int b = 0; b < m(); ++b) io.in[b] = static_cast<const T*>(p.x.at[b]);
    io.out[0] = static_cast<T*>(p.y);
    io.gap = p.x.gap;
    return launch_apply("sk_select", plan_sk_apply(p.map), p.map, io, gate, stream);
  });
}

template <>
Status launch_dot<T>(const SkDot& p, const A* given, A* sums, const Arrivals& arrivals,
                     void* stream) {
  return with_branches(p.x.count, [&](auto m) {
    const ReducePlan plan = plan_sk_reduce(p.map, m(), p.x.gap);
    const index_t planes = p.map.planes();
    ReduceIo<T, DotOp<T, m(), true>> io{};
    LogitGradient<A, m()> args{};
    io.in[0] = static_cast<const T*>(p.dy);
    for (int b = 0; b < m(); ++b) {
      io.in[b + 1] = static_cast<const T*>(p.x.at[b]);
      io.out[b] = sums + b * plan.splits * planes;
      args.dot[b] = {io.out[b], plan.splits, planes};
    }
    io.arrivals = arrivals;
    io.gap = p.x.gap;
    io.sample_planes = p.map.c;
    CHATTN_TRY(launch_reduce("sk_dot", plan, p.map, io, stream));
    args.logits = static_cast<const A*>(p.logits);
    args.given = given;
    args.dlogits = static_cast<A*>(p.dlogits);
    args.planes = static_cast<int>(planes);
    args.by_c = FastDiv(static_cast<std::uint32_t>(p.map.c));
    return launch("sk_logit_gradient", logit_gradient<A, m()>, per_plane(planes, stream), args);
  });
}

template <>
Status run_as<T>(const SkDot& p, void* scratch, void* stream) {
  return launch_dot<T>(p, nullptr, static_cast<A*>(scratch), {}, stream);
}

template <>
Status run_as<T>(const SkGradient& p, void*, void* stream) {
  return with_branches(p.dx.count, [&](auto m) {
    using Gate = SpreadGate<T, m()>;
    const Gate gate{static_cast<int>(p.map.c), static_cast<const A*>(p.logits),
                    static_cast<const A*>(p.dpooled), static_cast<A>(p.map.hw)};
    ApplyIo<T, typename Gate::Element> io{};
    io.in[0] = static_cast<const T*>(p.dy);
    for (int b = 0; b < m(); ++b) io.out[b] = static_cast<T*>(p.dx.at[b]);
    io.gap = p.dx.gap;
    return launch_apply("sk_gradient", plan_sk_apply(p.map), p.map, io, gate, stream);
  });
}

}  // namespace chattn::cuda
