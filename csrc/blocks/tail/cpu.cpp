// The tail around an attention block on the CPU: its passes, and batch statistics between them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "blocks/tail/params.h"
#include "engine/cpu/arrays.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/schedule.h"

namespace chattn::cpu {
namespace {

template <class A>
std::vector<A> zeros(index_t count) {
  return std::vector<A>(static_cast<std::size_t>(count));
}

// A row of ones where there is no gate, for any sample.
template <class A>
struct Gates {
  const A* at_first;
  index_t step;
  std::vector<A> ones;

  Gates(const void* gate, index_t c) : at_first(static_cast<const A*>(gate)), step(c) {
    if (at_first) return;
    ones.assign(static_cast<std::size_t>(c), A(1));
    at_first = ones.data();
    step = 0;
  }
  const A* operator()(index_t n) const { return at_first + n * step; }
};

bool streams(const MapShape& map) { return map.bytes() >= Schedule::kStreamBytes; }

// body(c0, c1) over channels, of which each costs `cost`.
template <class Body>
void for_channels(index_t c, index_t cost, const Parallel& parallel, Body&& body) {
  parallel.run(0, c, std::max<index_t>(16, 32768 / std::max<index_t>(1, cost)), body);
}

// ---- squeeze
template <class A>
struct Squeeze {
  const TailSqueeze& p;
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const index_t n = p.map.n, c = p.map.c, hw = p.map.hw;
  A* const scale = at<A>(p.numbers, kTailScale* c);
  A* const shift = at<A>(p.numbers, kTailShift* c);
  A* const mean = at<A>(p.numbers, kTailMean* c);
  A* const deviation = at<A>(p.numbers, kTailDeviation* c);
  std::vector<A> weight = numbers<A>(p.norm.weight, p.norm.affine_dtype, c, 1);
  std::vector<A> bias = numbers<A>(p.norm.bias, p.norm.affine_dtype, c, 0);
  std::vector<A> own_means = zeros<A>(p.norm.of_batch() && !p.means ? n * c : 0);
  A* const means = p.means ? at<A>(p.means, 0) : own_means.data();

  // Near the mean of every plane: sums of differences from it keep their precision, however large
  // the mean is, and however small beside a single value.
  void centers(const Parallel& parallel) const {
    const index_t few = std::clamp<index_t>(hw / 16, 1, 32);
    with_type(p.map.dtype, [&](auto* typed) {
      using T = std::remove_pointer_t<decltype(typed)>;
      for_planes(p.map, parallel, few, [&](index_t i, index_t c0, index_t c1) {
        const T* const x = static_cast<const T*>(p.x) + i * c * hw;
        A* const out = means + i * c;
        const index_t step = p.map.channels_last ? c : 1, plane = p.map.channels_last ? 1 : hw;
        for (index_t k = c0; k < c1; ++k) out[k] = to_acc(x[k * plane]);
        if (few == 1) return;
        std::vector<A> sums = zeros<A>(c1 - c0);
        const auto add = [&](index_t k, index_t q) {
          sums[static_cast<std::size_t>(k - c0)] += to_acc(x[k * plane + q * step]) - out[k];
        };
        if (p.map.channels_last) {
          for (index_t q = 1; q < few; ++q)
            for (index_t k = c0; k < c1; ++k) add(k, q);
        } else {
          for (index_t k = c0; k < c1; ++k)
            for (index_t q = 1; q < few; ++q) add(k, q);
        }
        for (index_t k = c0; k < c1; ++k)
          out[k] += sums[static_cast<std::size_t>(k - c0)] / static_cast<A>(few);
      });
    });
  }

  // Means of the planes and, by Chan's formula, of the batch: those of samples are merged in
  // float64.
  void of_batch(const Parallel& parallel) const {
    centers(parallel);
    const SpanSums<A> spans(p.map, 2);
    std::vector<A> sums = zeros<A>(2 * n * c);
    for_regions(p.map, parallel, [&](const Region& r) {
      pass.moments(p.map, p.x, r, means + r.n * c, spans.at(r, sums.data() + r.n * 2 * c));
    });
    for_planes(p.map, parallel, 2 * spans.count(), [&](index_t i, index_t c0, index_t c1) {
      A* const first = sums.data() + i * 2 * c;
      A* const second = first + c;
      spans.merge(i, c0, c1, 0, 2, first);
      for (index_t k = c0; k < c1; ++k) {
        const A d = first[k] / static_cast<A>(hw);
        means[i * c + k] += d;
        second[k] -= d * first[k];
      }
    });
    const double count = static_cast<double>(n) * static_cast<double>(hw);
    for_channels(c, 3 * n, parallel, [&](index_t c0, index_t c1) {
      for (index_t k = c0; k < c1; ++k) {
        double total = 0, squares = 0;
        for (index_t i = 0; i < n; ++i) total += static_cast<double>(means[i * c + k]);
        const double center = total / static_cast<double>(n);
        for (index_t i = 0; i < n; ++i) {
          const double d = static_cast<double>(means[i * c + k]) - center;
          squares += static_cast<double>(sums[static_cast<std::size_t>(i * 2 * c + c + k)]) +
                     static_cast<double>(hw) * d * d;
        }
        const double variance = squares / count;
        *at<A>(p.variance, k) = static_cast<A>(variance);
        set(k, center, variance);
        follow(p.running, k, center, variance, count);
      }
    });
  }

  void set(index_t k, double center, double variance) const {
    const double inverse = 1 / std::sqrt(variance + p.norm.eps);
    const double factor = static_cast<double>(weight[static_cast<std::size_t>(k)]) * inverse;
    mean[k] = static_cast<A>(center);
    deviation[k] = static_cast<A>(inverse);
    scale[k] = static_cast<A>(factor);
    shift[k] =
        static_cast<A>(static_cast<double>(bias[static_cast<std::size_t>(k)]) - center * factor);
  }

  void run(const Parallel& parallel) const {
    if (p.norm.of_batch()) {
      of_batch(parallel);
    } else {
      const auto center = numbers<A>(p.norm.mean, p.norm.statistics_dtype, c, 0);
      const auto variance = numbers<A>(p.norm.variance, p.norm.statistics_dtype, c, 1);
      for (index_t k = 0; k < c; ++k) {
        const auto i = static_cast<std::size_t>(k);
        set(k, static_cast<double>(center[i]), static_cast<double>(variance[i]));
      }
    }
    if (!p.pooled) return;
    const bool plain = p.functions.inner == Act::identity;
    if (!plain || !p.norm.of_batch()) {
      Branches x(p.x);
      if (!plain) x.prologue = p.numbers;
      x.act = p.functions.inner;
      x.act_param = p.functions.inner_param;
      A* const out = at<A>(plain ? p.means : p.pooled, 0);
      const SpanSums<A> spans(p.map, 1);
      for_regions(p.map, parallel,
                  [&](const Region& r) { pass.squeeze(p.map, x, r, spans.at(r, out + r.n * c)); });
      for_planes(p.map, parallel, spans.count(), [&](index_t i, index_t c0, index_t c1) {
        spans.merge(i, c0, c1, 0, 1, out + i * c);
        for (index_t k = c0; k < c1; ++k) out[i * c + k] /= static_cast<A>(hw);
      });
    }
    if (!plain) return;
    A* const pooled = at<A>(p.pooled, 0);
    for_planes(p.map, parallel, 1, [&](index_t i, index_t c0, index_t c1) {
      for (index_t k = c0; k < c1; ++k)
        pooled[i * c + k] =
            scale[k] * (means[i * c + k] - mean[k]) + bias[static_cast<std::size_t>(k)];
    });
  }
};

// ---- the other passes
// What the passes read of each sample: of the norm, and the gate. Without an inner activation the
// gate is a factor of scale and shift, so that a pass reads two rows and not three.
template <class A>
struct SampleNumbers {
  TailNumbers norm;
  Gates<A> gate;
  index_t c, step = 0;
  std::vector<A> scale, shift;

  SampleNumbers(const MapShape& map, const void* rows, const void* gates, bool plain,
                const Parallel& parallel)
      : gate(gates, map.c), c(map.c) {
    norm.scale = at<A>(rows, kTailScale * c);
    norm.shift = at<A>(rows, kTailShift * c);
    norm.mean = at<A>(rows, kTailMean * c);
    if (!plain || !gates) return;
    scale.resize(static_cast<std::size_t>(map.planes()));
    shift.resize(scale.size());
    for_planes(map, parallel, 1, [&](index_t i, index_t c0, index_t c1) {
      for (index_t k = c0; k < c1; ++k) {
        scale[static_cast<std::size_t>(i * c + k)] = gate(i)[k] * *at<A>(norm.scale, k);
        shift[static_cast<std::size_t>(i * c + k)] = gate(i)[k] * *at<A>(norm.shift, k);
      }
    });
    norm.scale = scale.data();
    norm.shift = shift.data();
    step = c;
  }
  TailNumbers operator()(index_t n) const {
    TailNumbers found = norm;
    found.scale = at<A>(norm.scale, n * step);
    found.shift = at<A>(norm.shift, n * step);
    found.gate = gate(n);
    return found;
  }
};

template <class A>
void apply(const TailApply& p, const Parallel& parallel) {
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const SampleNumbers<A> numbers(p.map, p.numbers, p.gate, p.functions.inner == Act::identity,
                                 parallel);
  TailMaps maps;
  maps.x = p.x;
  maps.residual = p.residual;
  for_regions(
      p.map, parallel,
      [&](const Region& r) {
        pass.tail(p.map, maps, p.functions, numbers(r.n), r, p.y, p.mask, streams(p.map));
      },
      true);
}

template <class A>
void reduce(const TailReduce& p, const Parallel& parallel) {
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const index_t c = p.map.c, rows = tail_sums(p.functions);
  const SampleNumbers<A> numbers(p.map, p.numbers, p.gate, rows == 2, parallel);
  const SpanSums<A> spans(p.map, rows);
  const A* const scale = at<A>(p.numbers, kTailScale * c);
  const A* const shift = at<A>(p.numbers, kTailShift * c);
  const A* const mean = at<A>(p.numbers, kTailMean * c);
  for_regions(p.map, parallel, [&](const Region& r) {
    pass.tail_sums(p.map, p.maps, p.functions, numbers(r.n), r,
                   spans.at(r, at<A>(p.sums, r.n * rows * c)));
  });
  for_planes(p.map, parallel, rows * spans.count(), [&](index_t i, index_t c0, index_t c1) {
    A* const sums = at<A>(p.sums, i * rows * c);
    spans.merge(i, c0, c1, 0, rows, sums);
    if (!p.dgate) return;
    A* const dgate = at<A>(p.dgate, i * c);
    for (index_t k = c0; k < c1; ++k)
      dgate[k] =
          rows > 2 ? sums[k] : scale[k] * sums[c + k] + (scale[k] * mean[k] + shift[k]) * sums[k];
  });
}

template <class A>
struct Gradient {
  const TailGradient& p;
  const Parallel& parallel;
  const index_t n = p.map.n, c = p.map.c, hw = p.map.hw, rows = tail_sums(p.functions);
  const bool plain = p.functions.inner == Act::identity;
  const SampleNumbers<A> numbers{p.map, p.numbers, p.gate, plain, parallel};
  // (N, C): what a position receives through the squeeze; (C): what all positions lose.
  std::vector<A> pooled = zeros<A>(p.dpooled ? n * c : c);
  std::vector<A> constant = zeros<A>(c), slope = zeros<A>(c);

  // The gradients of the norm: of its shift, and of its scale by what it multiplies.
  void norm() {
    const A* const deviation = at<A>(p.numbers, kTailDeviation * c);
    const A* const scale = at<A>(p.numbers, kTailScale * c);
    const A* const mean = at<A>(p.numbers, kTailMean * c);
    const double count = static_cast<double>(n) * static_cast<double>(hw);
    for_channels(c, 4 * n, parallel, [&](index_t c0, index_t c1) {
      for (index_t k = c0; k < c1; ++k) {
        double dshift = 0, dscale = 0;
        for (index_t i = 0; i < n; ++i) {
          const A* const sums = at<A>(p.sums, i * rows * c) + (plain ? k : c + k);
          const double q = static_cast<double>(numbers.gate(i)[k]);
          dshift += q * static_cast<double>(sums[0]);
          dscale += q * static_cast<double>(sums[c]);
          if (!p.dpooled) continue;
          const double d = static_cast<double>(pooled[static_cast<std::size_t>(i * c + k)]);
          if (plain) {
            dshift += d * static_cast<double>(hw);
            dscale += d * static_cast<double>(hw) *
                      static_cast<double>(*at<A>(p.means, i * c + k) - mean[k]);
          } else {
            dshift += d * static_cast<double>(sums[2 * c]);
            dscale += d * static_cast<double>(sums[3 * c]);
          }
        }
        const double inverse = static_cast<double>(deviation[k]);
        if (p.dweight) put<A>(p.dweight, p.norm.affine_dtype, k, static_cast<A>(dscale * inverse));
        if (p.dbias) put<A>(p.dbias, p.norm.affine_dtype, k, static_cast<A>(dshift));
        if (!p.of_batch) continue;
        const double of_each = static_cast<double>(scale[k]) / count;
        constant[static_cast<std::size_t>(k)] = static_cast<A>(of_each * dshift);
        slope[static_cast<std::size_t>(k)] = static_cast<A>(of_each * inverse * inverse * dscale);
      }
    });
  }

  // pooled = constant - scale * pooled
  void join() {
    const A* const scale = at<A>(p.numbers, kTailScale * c);
    for_planes(p.map, parallel, 1, [&](index_t i, index_t c0, index_t c1) {
      for (index_t k = c0; k < c1; ++k) {
        A& received = pooled[static_cast<std::size_t>(i * c + k)];
        received = constant[static_cast<std::size_t>(k)] - scale[k] * received;
      }
    });
  }

  void run() {
    if (p.dpooled)
      for_planes(p.map, parallel, 1, [&](index_t i, index_t c0, index_t c1) {
        for (index_t k = i * c + c0; k < i * c + c1; ++k)
          pooled[static_cast<std::size_t>(k)] = *at<A>(p.dpooled, k) / static_cast<A>(hw);
      });
    if (p.sums) norm();
    if (p.lost) {
      std::copy_n(at<A>(p.lost, 0), c, constant.data());
      std::copy_n(at<A>(p.lost, c), c, slope.data());
    }
    if (!p.dx && !p.dresidual) return;
    const PassKernels& pass = kernels().pass(p.map.dtype);
    const bool joined = plain && p.dpooled;  // one row for what planes receive and lose
    if (joined) join();
    for_regions(
        p.map, parallel,
        [&](const Region& r) {
          TailNumbers of_sample = numbers(r.n);
          const A* const received = pooled.data() + (p.dpooled ? r.n * c : 0);
          of_sample.dpooled = received;
          of_sample.constant = joined ? received : constant.data();
          of_sample.slope = slope.data();
          pass.tail_gradient(p.map, p.maps, p.functions, of_sample, r, p.dx, p.dresidual,
                             streams(p.map));
        },
        true);
  }
};

}  // namespace

template <>
void run(const TailSqueeze& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? Squeeze<double>{p}.run(parallel) : Squeeze<float>{p}.run(parallel);
}

template <>
void run(const TailApply& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? apply<double>(p, parallel) : apply<float>(p, parallel);
}

template <>
void run(const TailReduce& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? reduce<double>(p, parallel) : reduce<float>(p, parallel);
}

template <>
void run(const TailGradient& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? Gradient<double>{p, parallel}.run()
                            : Gradient<float>{p, parallel}.run();
}

}  // namespace chattn::cpu
