// Squeeze-and-excitation on the CPU: the engine's passes around the MLP gate.
#include <memory>
#include <vector>

#include "blocks/se/params.h"
#include "engine/cpu/arrays.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/schedule.h"

namespace chattn::cpu {
namespace {

// The forward pass in stages, each over a range, so that both schedules use the same code.
template <class A>
struct Forward {
  const SeForward& p;
  const PassKernels& pass;
  const MatrixKernels& matrix;
  index_t c, rd;

  explicit Forward(const SeForward& params)
      : p(params),
        pass(kernels().pass(p.map.dtype)),
        matrix(kernels().matrix(p.gate.weight_dtype)),
        c(p.map.c),
        rd(p.gate.rd) {}

  // The pooled values of planes whose sums are there.
  void pool(index_t n, index_t c0, index_t c1) const {
    A* sum = at<A>(p.pooled, n * c);
    const A scale = A(1) / static_cast<A>(p.map.hw);
    for (index_t i = c0; i < c1; ++i) sum[i] *= scale;
  }

  // Hidden units [j0, j1) of samples [n0, n1).
  void hidden(index_t n0, index_t n1, index_t j0, index_t j1) const {
    if (p.gate.direct) return;  // they are the pooled values
    matrix.rows(at<A>(p.pooled, n0 * c), p.w1, p.b1, at<A>(p.hidden, n0 * rd), n1 - n0, rd, j0, j1,
                c);
  }

  void activate_hidden(index_t n0, index_t n1, A* activated) const {
    const A* h = at<A>(static_cast<const void*>(p.hidden), n0 * rd);
    std::copy(h, h + (n1 - n0) * rd, activated);
    matrix.activate(p.gate.act, p.gate.act_param, activated, (n1 - n0) * rd);
  }

  // Gates [c0, c1) of samples [n0, n1), from their activated hidden units.
  void gate(const A* activated, index_t n0, index_t n1, index_t c0, index_t c1) const {
    A* s = at<A>(p.scale, n0 * c);
    matrix.rows(activated, p.w2, p.b2, s, n1 - n0, c, c0, c1, rd);
    for (index_t n = 0; n < n1 - n0; ++n) matrix.activate(p.gate.gate, 0, s + n * c + c0, c1 - c0);
  }

  void rescale(const Region& r, bool stream) const {
    pass.rescale(p.map, p.x, r, at<A>(p.scale, r.n * c), p.y, stream);
  }

  // All threads together.
  void squeeze(const Parallel& parallel) const {
    const SpanSums<A> sums(p.map, 1);
    for_regions(p.map, parallel, [&](const Region& r) {
      pass.squeeze(p.map, p.x, r, sums.at(r, at<A>(p.pooled, r.n * c)));
    });
    for_planes(p.map, parallel, sums.count(), [&](index_t n, index_t c0, index_t c1) {
      sums.merge(n, c0, c1, 0, 1, at<A>(p.pooled, n * c));
      pool(n, c0, c1);
    });
  }

  void run(const Parallel& parallel) const {
    const index_t samples = p.map.n;
    const Schedule schedule = Schedule::make(p.map, p.gate.bytes(p.map.c), parallel.threads);
    if (schedule.by_sample) {
      parallel.run(0, samples, schedule.grain, [&](index_t first, index_t last) {
        std::vector<A> activated(static_cast<std::size_t>(schedule.tile * rd));
        for (index_t n0 = first; n0 < last; n0 += schedule.tile) {
          const index_t n1 = std::min(last, n0 + schedule.tile);
          for (index_t n = n0; n < n1; ++n) {
            pass.squeeze(p.map, p.x, region(p.map, n, 0, c), at<A>(p.pooled, n * c));
            pool(n, 0, c);
          }
          hidden(n0, n1, 0, rd);
          activate_hidden(n0, n1, activated.data());
          gate(activated.data(), n0, n1, 0, c);
          for (index_t n = n1; n-- > n0;)
            backwards(p.map, n, [&](const Region& r) { rescale(r, schedule.stream); });
        }
      });
      return;
    }
    squeeze(parallel);
    const index_t grain = std::max<index_t>(1, 16384 / c);
    parallel.run(0, rd, grain, [&](index_t j0, index_t j1) { hidden(0, samples, j0, j1); });
    std::vector<A> activated(static_cast<std::size_t>(samples * rd));
    activate_hidden(0, samples, activated.data());
    parallel.run(0, c, std::max<index_t>(1, 16384 / rd),
                 [&](index_t c0, index_t c1) { gate(activated.data(), 0, samples, c0, c1); });
    for_regions(p.map, parallel, [&](const Region& r) { rescale(r, schedule.stream); }, true);
  }
};

template <class A>
struct Backward {
  const SeBackward& p;
  const PassKernels& pass;
  const MatrixKernels& matrix;
  index_t c, rd;
  // (N, C): dz, the gradient before the gate function; dp, of the pooled map, per position.
  // (N, rd): dh, before the activation; activated hidden units.
  std::unique_ptr<A[]> scratch;
  A *dz, *dp, *dh, *activated;

  explicit Backward(const SeBackward& params)
      : p(params),
        pass(kernels().pass(p.map.dtype)),
        matrix(kernels().matrix(p.gate.weight_dtype)),
        c(p.map.c),
        rd(p.gate.rd) {
    const index_t planes = p.map.planes(), units = p.map.n * rd;
    const index_t size = 2 * planes + 2 * units;
    scratch = std::make_unique_for_overwrite<A[]>(static_cast<std::size_t>(size));
    dz = scratch.get();
    dp = dz + planes;
    dh = p.gate.direct ? dp : dp + planes;
    activated = dp + planes + units;
  }

  // dz of planes whose dots are there.
  void before_gate(index_t n, index_t c0, index_t c1) {
    A* ds = dz + n * c;
    const index_t first = n * c + c0;
    matrix.gate_backward(p.gate.gate, at<A>(p.scale, first), at<A>(p.dgate, first), ds + c0,
                         c1 - c0);
  }

  void hidden(index_t n0, index_t n1, index_t j0, index_t j1) {
    matrix.columns(dz + n0 * c, p.w2, dh + n0 * rd, n1 - n0, c, rd, j0, j1);
    for (index_t n = n0; n < n1; ++n) {
      const index_t first = n * rd + j0;
      matrix.activate_backward(p.gate.act, p.gate.act_param, at<A>(p.hidden, first),
                               activated + first, dh + first, j1 - j0);
    }
  }

  // dp is left as what every position of a plane receives: dp/HW.
  void pooled(index_t n0, index_t n1, index_t c0, index_t c1) {
    if (!p.gate.direct) matrix.columns(dh + n0 * rd, p.w1, dp + n0 * c, n1 - n0, rd, c, c0, c1);
    const A hw = static_cast<A>(p.map.hw);
    for (index_t n = n0; n < n1; ++n)
      for (index_t i = n * c + c0; i < n * c + c1; ++i) dp[i] /= hw;
  }

  void gradient(const Region& r, bool stream) const {
    const index_t first = r.n * c;
    pass.gradient(p.map, p.dy, r, at<A>(p.scale, first), dp + first, p.dx, stream);
  }

  // All threads together.
  void reduce(const Parallel& parallel) {
    const SpanSums<A> sums(p.map, 1);
    for_regions(p.map, parallel,
                [&](const Region& r) { pass.dot(p.map, p.dy, p.x, r, sums.at(r, dz + r.n * c)); });
    for_planes(p.map, parallel, sums.count(), [&](index_t n, index_t c0, index_t c1) {
      sums.merge(n, c0, c1, 0, 1, dz + n * c);
      before_gate(n, c0, c1);
    });
  }

  void run(const Parallel& parallel) {
    const index_t samples = p.map.n;
    const Schedule schedule = Schedule::make(p.map, p.gate.bytes(p.map.c), parallel.threads);
    if (schedule.by_sample) {
      parallel.run(0, samples, schedule.grain, [&](index_t first, index_t last) {
        for (index_t n0 = first; n0 < last; n0 += schedule.tile) {
          const index_t n1 = std::min(last, n0 + schedule.tile);
          for (index_t n = n0; n < n1; ++n) {
            pass.dot(p.map, p.dy, p.x, region(p.map, n, 0, c), dz + n * c);
            before_gate(n, 0, c);
          }
          hidden(n0, n1, 0, rd);
          if (!p.dx) continue;
          pooled(n0, n1, 0, c);
          for (index_t n = n1; n-- > n0;)
            backwards(p.map, n, [&](const Region& r) { gradient(r, schedule.stream); });
        }
      });
    } else {
      reduce(parallel);
      const index_t grain = std::max<index_t>(16, 16384 / c);
      parallel.run(0, rd, grain, [&](index_t j0, index_t j1) { hidden(0, samples, j0, j1); });
      if (p.dx) {
        parallel.run(0, c, std::max<index_t>(16, 16384 / rd),
                     [&](index_t c0, index_t c1) { pooled(0, samples, c0, c1); });
        for_regions(p.map, parallel, [&](const Region& r) { gradient(r, schedule.stream); }, true);
      }
    }
    if (!p.dw2) return;
    parallel.run(0, c, std::max<index_t>(1, 16384 / rd), [&](index_t c0, index_t c1) {
      matrix.outer(dz, activated, p.dw2, p.db2, samples, c, c0, c1, rd);
    });
    if (!p.dw1) return;
    parallel.run(0, rd, std::max<index_t>(1, 16384 / c), [&](index_t j0, index_t j1) {
      matrix.outer(dh, p.pooled, p.dw1, p.db1, samples, rd, j0, j1, c);
    });
  }
};

}  // namespace

template <>
void run(const SeForward& p, const Parallel& parallel) {
  if (p.map.dtype == DType::f64) {
    Forward<double>(p).run(parallel);
  } else {
    Forward<float>(p).run(parallel);
  }
}

template <>
void run(const SeBackward& p, const Parallel& parallel) {
  if (p.map.dtype == DType::f64) {
    Backward<double>(p).run(parallel);
  } else {
    Backward<float>(p).run(parallel);
  }
}

}  // namespace chattn::cpu
