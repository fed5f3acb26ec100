// The selective kernel with its network on the CPU, in one call.
//
// As in squeeze-and-excitation, a thread takes a tile of samples through all stages while it is in
// cache, unless there are too few samples or the norm needs the statistics of all of them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "gates/sk_cpu.h"
#include "gates/sk_passes_cpu.h"

namespace chattn::cpu {
namespace {

using Norm = SkNetwork::Norm;

// Products of rows are worth another thread from about so many multiplications on.
constexpr index_t kGrain = 16384;
index_t grain(index_t per_output) { return std::max<index_t>(1, kGrain / per_output); }

Schedule schedule_of(const MapShape& map, int branches, const SkNetwork& network, int threads) {
  MapShape maps = map;  // all that a sample's two passes read
  maps.c *= branches;
  Schedule s = Schedule::make(maps, network.bytes(map, branches), threads);
  s.by_sample = s.by_sample && network.norm != Norm::of_batch;
  return s;
}

template <class A>
A inverse_deviation(A variance, double eps) {
  return A(1) / std::sqrt(variance + static_cast<A>(eps));
}

template <class A>
struct Forward {
  const SkForward& p;
  SkPasses<A> passes{p.map, p.x.count};
  const MatrixKernels& matrix = passes.matrix;
  index_t c = p.map.c, d = p.network.d, rows = p.x.count * c;

  // Hidden units [j0, j1) of samples [n0, n1), before the norm.
  void hidden(index_t n0, index_t n1, index_t j0, index_t j1) const {
    void* out = p.network.norm == Norm::none ? p.activated : p.hidden;
    matrix.rows(at<A>(p.pooled, n0 * c), p.network.w_reduce, p.network.b_reduce, at<A>(out, n0 * d),
                n1 - n0, d, j0, j1, c);
  }

  // Summed in double, as PyTorch does: many samples of a large mean lose digits otherwise.
  void statistics() const {
    const A* h = at<A>(p.hidden, 0);
    const index_t samples = p.map.n;
    const double count = static_cast<double>(samples);
    std::vector<double> mean(static_cast<std::size_t>(d)), square(mean);
    for (index_t n = 0; n < samples; ++n)
      for (std::size_t j = 0; j < mean.size(); ++j) mean[j] += h[n * d + static_cast<index_t>(j)];
    for (double& m : mean) m /= count;
    for (index_t n = 0; n < samples; ++n)
      for (std::size_t j = 0; j < mean.size(); ++j) {
        const double v = h[n * d + static_cast<index_t>(j)] - mean[j];
        square[j] += v * v;
      }
    std::copy(mean.begin(), mean.end(), at<A>(p.mean, 0));
    std::transform(square.begin(), square.end(), at<A>(p.variance, 0),
                   [&](double v) { return static_cast<A>(v / count); });
    if (p.running_mean) update(at<A>(p.running_mean, 0), at<A>(p.mean, 0), A(1));
    const A unbiased = static_cast<A>(count / (count - 1));
    if (p.running_variance) update(at<A>(p.running_variance, 0), at<A>(p.variance, 0), unbiased);
  }

  void update(A* running, const A* of_batch, A factor) const {
    const A share = static_cast<A>(p.network.momentum);
    for (index_t j = 0; j < d; ++j)
      running[j] = (A(1) - share) * running[j] + share * factor * of_batch[j];
  }

  void activate(index_t n0, index_t n1) const {
    A* a = at<A>(p.activated, 0);
    if (p.network.norm != Norm::none) {
      const A *h = at<A>(p.hidden, 0), *mean = at<A>(p.mean, 0), *var = at<A>(p.variance, 0);
      const A *weight = at<A>(p.network.weight, 0), *bias = at<A>(p.network.bias, 0);
      for (index_t j = 0; j < d; ++j) {
        const A scale = inverse_deviation(var[j], p.network.eps) * (weight ? weight[j] : A(1));
        for (index_t n = n0; n < n1; ++n)
          a[n * d + j] = (h[n * d + j] - mean[j]) * scale + (bias ? bias[j] : A(0));
      }
    }
    if (p.network.relu)
      for (index_t i = n0 * d; i < n1 * d; ++i) a[i] = a[i] <= A(0) ? A(0) : a[i];  // NaN stays
  }

  void logits(index_t n0, index_t n1, index_t i0, index_t i1) const {
    matrix.rows(at<A>(p.activated, n0 * d), p.network.w_select, p.network.b_select,
                at<A>(p.logits, n0 * rows), n1 - n0, rows, i0, i1, d);
  }

  void squeeze(index_t n, index_t c0, index_t c1) const {
    passes.squeeze(p.x, p.pooled, n, c0, c1);
  }
  void select(index_t n, index_t c0, index_t c1) const {
    passes.select(p.x, p.logits, p.y, n, c0, c1);
  }

  void run(const Parallel& parallel) const {
    const index_t samples = p.map.n;
    const Schedule schedule = schedule_of(p.map, p.x.count, p.network, parallel.threads);
    if (schedule.by_sample) {
      parallel.run(0, samples, 1, [&](index_t first, index_t last) {
        for (index_t n0 = first; n0 < last; n0 += schedule.tile) {
          const index_t n1 = std::min(last, n0 + schedule.tile);
          for (index_t n = n0; n < n1; ++n) squeeze(n, 0, c);
          hidden(n0, n1, 0, d);
          activate(n0, n1);
          logits(n0, n1, 0, rows);
          for (index_t n = n1; n-- > n0;) select(n, 0, c);
        }
      });
      return;
    }
    for_channels(p.map, parallel, [&](index_t n, index_t c0, index_t c1) { squeeze(n, c0, c1); });
    parallel.run(0, d, grain(samples * c),
                 [&](index_t j0, index_t j1) { hidden(0, samples, j0, j1); });
    if (p.network.norm == Norm::of_batch) statistics();
    activate(0, samples);
    parallel.run(0, rows, grain(samples * d),
                 [&](index_t i0, index_t i1) { logits(0, samples, i0, i1); });
    for_channels(
        p.map, parallel, [&](index_t n, index_t c0, index_t c1) { select(n, c0, c1); }, true);
  }
};

// In stages that all threads share: the norm's gradients need all samples.
template <class A>
struct Backward {
  const SkBackward& p;
  SkPasses<A> passes{p.map, p.x.count};
  const MatrixKernels& matrix = passes.matrix;
  index_t c = p.map.c, d = p.network.d, rows = p.x.count * c, samples = p.map.n;
  // dz: of the logits, (N, M, C); dp: of the mean, (N, C); dh: of the hidden values, (N, d).
  std::unique_ptr<A[]> scratch =
      std::make_unique_for_overwrite<A[]>(static_cast<std::size_t>(samples * (rows + c + d)));
  A *dz = scratch.get(), *dp = dz + samples * rows, *dh = dp + samples * c;

  // dh before the activation, for units [j0, j1).
  void hidden(index_t j0, index_t j1) const {
    matrix.columns(dz, p.network.w_select, dh, samples, rows, d, j0, j1);
    if (!p.network.relu) return;
    const A* a = at<A>(p.activated, 0);
    for (index_t n = 0; n < samples; ++n)
      for (index_t i = n * d + j0; i < n * d + j1; ++i) dh[i] = a[i] <= A(0) ? A(0) : dh[i];
  }

  // dh before the norm, and the norm's gradients.
  void norm() const {
    const A *h = at<A>(p.hidden, 0), *mean = at<A>(p.mean, 0), *var = at<A>(p.variance, 0);
    const A* weight = at<A>(p.network.weight, 0);
    const bool of_batch = p.network.norm == Norm::of_batch;
    for (index_t j = 0; j < d; ++j) {
      const A inverse = inverse_deviation(var[j], p.network.eps);
      const auto normal = [&](index_t n) { return (h[n * d + j] - mean[j]) * inverse; };
      double sum = 0, product = 0;
      for (index_t n = 0; n < samples; ++n) {
        sum += dh[n * d + j];
        product += dh[n * d + j] * normal(n);
      }
      if (p.dweight) at<A>(p.dweight, 0)[j] = static_cast<A>(product);
      if (p.dbias) at<A>(p.dbias, 0)[j] = static_cast<A>(sum);
      const A scale = inverse * (weight ? weight[j] : A(1));
      const A mean_sum = static_cast<A>(sum / static_cast<double>(samples));
      const A mean_product = static_cast<A>(product / static_cast<double>(samples));
      for (index_t n = 0; n < samples; ++n) {
        A& v = dh[n * d + j];
        // Fixed statistics hand on nothing, not even a NaN of another sample.
        v = scale * (of_batch ? v - mean_sum - normal(n) * mean_product : v);
      }
    }
  }

  void weights(const Parallel& parallel) const {
    parallel.run(0, rows, grain(samples * d), [&](index_t i0, index_t i1) {
      matrix.outer(dz, p.activated, p.dw_select, p.db_select, samples, rows, i0, i1, d);
    });
    parallel.run(0, d, grain(samples * c), [&](index_t j0, index_t j1) {
      // The batch's mean takes a bias away: its gradient is zero, and not the rounding of a sum.
      const bool cancelled = p.network.norm == Norm::of_batch;
      matrix.outer(dh, p.pooled, p.dw_reduce, cancelled ? nullptr : p.db_reduce, samples, d, j0, j1,
                   c);
      if (cancelled) std::fill(at<A>(p.db_reduce, j0), at<A>(p.db_reduce, j1), A(0));
    });
  }

  void run(const Parallel& parallel) const {
    for_channels(p.map, parallel, [&](index_t n, index_t c0, index_t c1) {
      passes.dot(p.x, p.dy, p.logits, p.dlogits, dz, n, c0, c1);
    });
    parallel.run(0, d, std::max<index_t>(16, grain(samples * rows)),
                 [&](index_t j0, index_t j1) { hidden(j0, j1); });
    if (p.network.norm != Norm::none) norm();
    if (p.dx.at[0]) {
      parallel.run(0, c, std::max<index_t>(16, grain(samples * d)), [&](index_t c0, index_t c1) {
        matrix.columns(dh, p.network.w_reduce, dp, samples, d, c, c0, c1);
      });
      const auto body = [&](index_t n, index_t c0, index_t c1) {
        passes.gradient(p.dy, p.logits, dp, p.dx, n, c0, c1);
      };
      for_channels(p.map, parallel, body, true);
    }
    if (p.dw_select) weights(parallel);
  }
};

}  // namespace

template <>
void run(const SkForward& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? Forward<double>{p}.run(parallel) : Forward<float>{p}.run(parallel);
}
template <>
void run(const SkBackward& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? Backward<double>{p}.run(parallel) : Backward<float>{p}.run(parallel);
}

}  // namespace chattn::cpu
