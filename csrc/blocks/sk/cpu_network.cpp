// The selective kernel with its network on the CPU, in one call.
//
// As in squeeze-and-excitation, a thread takes a tile of samples through all stages while it is in
// cache, unless there are too few samples or the norm needs the statistics of all of them.
#include <algorithm>
#include <cstring>
#include <vector>

#include "blocks/sk/cpu_numbers.h"
#include "blocks/sk/cpu_passes.h"

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

// The norm of the hidden values; of_batch: mean and variance are still to be found. In float64,
// which costs nothing for so few numbers: what is left of a value after its mean has few digits.
struct HiddenNorm {
  std::vector<double> mean, variance, weight, bias;

  explicit HiddenNorm(const SkNetwork& n)
      : mean(numbers<double>(n.mean, n.statistics_dtype, n.d, 0)),
        variance(numbers<double>(n.variance, n.statistics_dtype, n.d, 1)),
        weight(numbers<double>(n.weight, n.affine_dtype, n.d, 1)),
        bias(numbers<double>(n.bias, n.affine_dtype, n.d, 0)) {}
};

template <class A>
struct Forward {
  const SkForward& p;
  const SkNetwork& network = p.network;
  SkPasses<A> passes{p.map, p.x.count};
  HiddenNorm norm{network};
  std::vector<A> prologue =
      p.norms.count ? prologue_of<A>(p.norms, p.x.count, p.map.c) : std::vector<A>{};
  Branches x = p.x;
  index_t c = p.map.c, d = network.d, rows = p.x.count * c;

  // Hidden units [j0, j1) of samples [n0, n1), before the norm.
  void hidden(index_t n0, index_t n1, index_t j0, index_t j1) const {
    void* out = network.norm == Norm::none ? p.activated : p.hidden;
    kernels()
        .matrix(network.reduce.dtype)
        .rows(at<A>(p.pooled, n0 * c), network.reduce.w, network.reduce.b, at<A>(out, n0 * d),
              n1 - n0, d, j0, j1, c);
  }

  void statistics() {
    const A* h = at<A>(p.hidden, 0);
    const index_t samples = p.map.n;
    const double count = static_cast<double>(samples);
    std::fill(norm.mean.begin(), norm.mean.end(), 0);
    std::fill(norm.variance.begin(), norm.variance.end(), 0);
    for (index_t n = 0; n < samples; ++n)
      for (std::size_t j = 0; j < norm.mean.size(); ++j)
        norm.mean[j] += h[n * d + static_cast<index_t>(j)];
    for (double& m : norm.mean) m /= count;
    for (index_t n = 0; n < samples; ++n)
      for (std::size_t j = 0; j < norm.mean.size(); ++j) {
        const double v = h[n * d + static_cast<index_t>(j)] - norm.mean[j];
        norm.variance[j] += v * v;
      }
    for (double& v : norm.variance) v /= count;
    const auto rounded = [](double v) { return static_cast<A>(v); };
    std::transform(norm.mean.begin(), norm.mean.end(), at<A>(p.mean, 0), rounded);
    std::transform(norm.variance.begin(), norm.variance.end(), at<A>(p.variance, 0), rounded);
    for (std::size_t j = 0; j < norm.mean.size(); ++j)
      follow(p.running, static_cast<index_t>(j), norm.mean[j], norm.variance[j], count);
  }

  void activate(index_t n0, index_t n1) const {
    A* a = at<A>(p.activated, 0);
    if (network.norm != Norm::none) {
      const A* h = at<A>(p.hidden, 0);
      for (std::size_t j = 0; j < norm.mean.size(); ++j) {
        const double scale = inverse_deviation(norm.variance[j], network.eps) * norm.weight[j];
        for (index_t i = n0 * d + static_cast<index_t>(j); i < n1 * d; i += d)
          a[i] = static_cast<A>((h[i] - norm.mean[j]) * scale + norm.bias[j]);
      }
    }
    if (network.relu)
      for (index_t i = n0 * d; i < n1 * d; ++i) a[i] = a[i] <= A(0) ? A(0) : a[i];  // NaN stays
  }

  void logits(index_t n0, index_t n1, index_t i0, index_t i1) const {
    kernels()
        .matrix(network.select.dtype)
        .rows(at<A>(p.activated, n0 * d), network.select.w, network.select.b,
              at<A>(p.logits, n0 * rows), n1 - n0, rows, i0, i1, d);
  }

  void run(const Parallel& parallel) {
    if (!prologue.empty()) x.prologue = prologue.data();
    const index_t samples = p.map.n;
    const Schedule schedule = schedule_of(p.map, p.x.count, network, parallel.threads);
    if (schedule.by_sample) {
      parallel.run(0, samples, schedule.grain, [&](index_t first, index_t last) {
        for (index_t n0 = first; n0 < last; n0 += schedule.tile) {
          const index_t n1 = std::min(last, n0 + schedule.tile);
          for (index_t n = n0; n < n1; ++n) passes.squeeze_sample(x, p.pooled, n);
          hidden(n0, n1, 0, d);
          activate(n0, n1);
          logits(n0, n1, 0, rows);
          for (index_t n = n1; n-- > n0;) passes.select_sample(x, p.logits, p.y, n);
        }
      });
      return;
    }
    passes.squeeze(x, p.pooled, parallel);
    parallel.run(0, d, grain(samples * c),
                 [&](index_t j0, index_t j1) { hidden(0, samples, j0, j1); });
    if (network.norm == Norm::of_batch) statistics();
    activate(0, samples);
    parallel.run(0, rows, grain(samples * d),
                 [&](index_t i0, index_t i1) { logits(0, samples, i0, i1); });
    passes.select(x, p.logits, p.y, parallel);
  }
};

// In stages that all threads share: the norm's gradients need all samples.
template <class A>
struct Backward {
  const SkBackward& p;
  const SkNetwork& network = p.network;
  SkPasses<A> passes{p.map, p.x.count};
  HiddenNorm norm{network};
  const MatrixKernels& reduce = kernels().matrix(network.reduce.dtype);
  const MatrixKernels& select = kernels().matrix(network.select.dtype);
  index_t c = p.map.c, d = network.d, rows = p.x.count * c, samples = p.map.n;
  // dz: of the logits, (N, M, C); dp: of the mean, (N, C); dh: of the hidden values, (N, d).
  std::unique_ptr<A[]> scratch =
      std::make_unique_for_overwrite<A[]>(static_cast<std::size_t>(samples * (rows + c + d)));
  A *dz = scratch.get(), *dp = dz + samples * rows, *dh = dp + samples * c;

  // dh before the activation, for units [j0, j1).
  void hidden(index_t j0, index_t j1) const {
    select.columns(dz, network.select.w, dh, samples, rows, d, j0, j1);
    if (!network.relu) return;
    const A* a = at<A>(p.activated, 0);
    for (index_t n = 0; n < samples; ++n)
      for (index_t i = n * d + j0; i < n * d + j1; ++i) dh[i] = a[i] <= A(0) ? A(0) : dh[i];
  }

  // dh before the norm, and the norm's gradients.
  void before_norm() const {
    const A* h = at<A>(p.hidden, 0);
    const bool of_batch = network.norm == Norm::of_batch;
    for (std::size_t j = 0; j < norm.mean.size(); ++j) {
      const auto unit = static_cast<index_t>(j);
      const double inverse = inverse_deviation(norm.variance[j], network.eps);
      const auto normal = [&](index_t i) { return (h[i] - norm.mean[j]) * inverse; };
      double sum = 0, product = 0;
      for (index_t i = unit; i < samples * d; i += d) {
        sum += dh[i];
        product += dh[i] * normal(i);
      }
      if (p.dweight) put(p.dweight, network.affine_dtype, unit, product);
      if (p.dbias) put(p.dbias, network.affine_dtype, unit, sum);
      const double scale = inverse * norm.weight[j];
      const double mean_sum = sum / static_cast<double>(samples);
      const double mean_product = product / static_cast<double>(samples);
      // Fixed statistics hand on nothing, not even a NaN of another sample.
      for (index_t i = unit; i < samples * d; i += d)
        dh[i] = static_cast<A>(scale *
                               (of_batch ? dh[i] - mean_sum - normal(i) * mean_product : dh[i]));
    }
  }

  void weights(const Parallel& parallel) const {
    if (p.dw_select || p.db_select)
      parallel.run(0, rows, grain(samples * d), [&](index_t i0, index_t i1) {
        select.outer(dz, p.activated, p.dw_select, p.db_select, samples, rows, i0, i1, d);
      });
    // The batch's mean takes a bias away: its gradient is zero, and not the rounding of a sum.
    const bool cancelled = network.norm == Norm::of_batch;
    if (p.db_reduce && cancelled)
      std::memset(p.db_reduce, 0, static_cast<std::size_t>(d * size_of(network.reduce.dtype)));
    void* const db = cancelled ? nullptr : p.db_reduce;
    if (p.dw_reduce || db)
      parallel.run(0, d, grain(samples * c), [&](index_t j0, index_t j1) {
        reduce.outer(dh, p.pooled, p.dw_reduce, db, samples, d, j0, j1, c);
      });
  }

  void run(const Parallel& parallel) const {
    passes.dot(p.x, p.dy, p.logits, p.dlogits, dz, parallel);
    parallel.run(0, d, std::max<index_t>(16, grain(samples * rows)),
                 [&](index_t j0, index_t j1) { hidden(j0, j1); });
    if (network.norm != Norm::none) before_norm();
    if (p.dx.at[0]) {
      parallel.run(0, c, std::max<index_t>(16, grain(samples * d)), [&](index_t c0, index_t c1) {
        reduce.columns(dh, network.reduce.w, dp, samples, d, c, c0, c1);
      });
      passes.gradient(p.dy, p.logits, dp, p.dx, parallel);
    }
    weights(parallel);
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
