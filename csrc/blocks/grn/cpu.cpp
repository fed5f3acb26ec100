// Global response normalisation on the CPU: the engine's passes around sums over the channels.
#include <cmath>
#include <vector>

#include "blocks/grn/params.h"
#include "engine/cpu/arrays.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/schedule.h"

namespace chattn::cpu {
namespace {

// fold(region, sums) over the map, gates(n) for every sample whose sums are there, then
// write(region, stream). sums: (N, rows, C). A gate depends on all channels of its sample.
template <class A, class Fold, class Gates, class Write>
void two_passes(const MapShape& map, const Parallel& parallel, A* sums, index_t rows, Fold&& fold,
                Gates&& gates, Write&& write) {
  const Schedule schedule = Schedule::make(map, 0, parallel.threads);
  const index_t row = rows * map.c;
  if (schedule.by_sample) {
    parallel.run(0, map.n, schedule.grain, [&](index_t first, index_t last) {
      for (index_t n = first; n < last; ++n) {
        fold(region(map, n, 0, map.c), sums + n * row);
        gates(n);
        backwards(map, n, [&](const Region& r) { write(r, schedule.stream); });
      }
    });
    return;
  }
  const SpanSums<A> spans(map, rows);
  for_regions(map, parallel, [&](const Region& r) { fold(r, spans.at(r, sums + r.n * row)); });
  parallel.run(0, map.n, std::max<index_t>(1, 16384 / row), [&](index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) {
      spans.merge(n, 0, map.c, 0, rows, sums + n * row);
      gates(n);
    }
  });
  for_regions(map, parallel, [&](const Region& r) { write(r, schedule.stream); }, true);
}

// The sums over channels are added in float64: there may be thousands.
template <class A>
void forward(const GrnForward& p, const Parallel& parallel) {
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const index_t c = p.map.c;
  const std::vector<A> weight = numbers<A>(p.weight, p.weight_dtype, c, 0);
  const std::vector<A> bias = numbers<A>(p.bias, p.weight_dtype, c, 0);
  std::vector<A> factors(static_cast<std::size_t>(p.map.planes()));
  two_passes(
      p.map, parallel, at<A>(p.norms, 0), 1,
      [&](const Region& r, A* squares) { pass.dot(p.map, p.x, p.x, r, squares); },
      [&](index_t n) {
        A* const norm = at<A>(p.norms, n * c);
        A* const s = at<A>(p.scale, n * c);
        A* const factor = factors.data() + n * c;
        double total = 0;
        for (index_t i = 0; i < c; ++i) total += norm[i] = std::sqrt(norm[i]);
        const A mean = static_cast<A>(total / static_cast<double>(c) + p.eps);
        for (index_t i = 0; i < c; ++i) {
          s[i] = norm[i] / mean;
          factor[i] = A(1) + weight[static_cast<std::size_t>(i)] * s[i];
        }
      },
      [&](const Region& r, bool stream) {
        pass.gradient(p.map, p.x, r, factors.data() + r.n * c, bias.data(), p.y, stream);
      });
}

template <class A>
void backward(const GrnBackward& p, const Parallel& parallel) {
  const PassKernels& pass = kernels().pass(p.map.dtype);
  const index_t c = p.map.c, rows = p.dweight ? 2 : 1;
  const std::vector<A> weight = numbers<A>(p.weight, p.weight_dtype, c, 0);
  const auto planes = static_cast<std::size_t>(p.map.planes());
  std::vector<A> sums(planes * static_cast<std::size_t>(rows));  // dy*x and dy
  std::vector<A> factors(2 * planes);                            // of dy and of x
  Branches maps;
  maps.at[0] = p.dy;
  maps.at[1] = p.x;
  maps.count = 2;
  two_passes(
      p.map, parallel, sums.data(), rows,
      [&](const Region& r, A* out) {
        pass.dot(p.map, p.dy, p.x, r, out);
        if (p.dweight) pass.squeeze(p.map, p.dy, r, out + c);
      },
      [&](index_t n) {
        const A* const dot = sums.data() + n * rows * c;
        const A* const norm = at<A>(p.norms, n * c);
        const A* const s = at<A>(p.scale, n * c);
        const A* const dgate = at<A>(p.dgate, n * c);
        A* const of_dy = factors.data() + n * 2 * c;
        A* const of_x = of_dy + c;
        double norms = 0, products = 0;
        for (index_t i = 0; i < c; ++i) {
          const A w = weight[static_cast<std::size_t>(i)];
          of_dy[i] = A(1) + w * s[i];
          of_x[i] = w * dot[i] + (dgate ? dgate[i] : A(0));
          norms += norm[i];
          products += static_cast<double>(of_x[i]) * norm[i];
        }
        const double mean = norms / static_cast<double>(c) + p.eps;
        const A common = static_cast<A>(products / static_cast<double>(c) / mean);
        // A norm of 0 has no gradient, as in PyTorch.
        for (index_t i = 0; i < c; ++i)
          of_x[i] = norm[i] == A(0) ? A(0) : (of_x[i] - common) / static_cast<A>(mean) / norm[i];
      },
      [&](const Region& r, bool stream) {
        if (p.dx) pass.rescale(p.map, maps, r, factors.data() + r.n * 2 * c, p.dx, stream);
      });
  if (!p.dweight) return;
  parallel.run(0, c, std::max<index_t>(1, 32768 / p.map.n), [&](index_t first, index_t last) {
    for (index_t i = first; i < last; ++i) {
      double dweight = 0, dbias = 0;
      for (index_t n = 0; n < p.map.n; ++n) {
        const A* const sample = sums.data() + n * 2 * c;
        dweight += static_cast<double>(*at<A>(p.scale, n * c + i)) * sample[i];
        dbias += sample[c + i];
      }
      put<A>(p.dweight, p.weight_dtype, i, static_cast<A>(dweight));
      put<A>(p.dbias, p.weight_dtype, i, static_cast<A>(dbias));
    }
  });
}

}  // namespace

template <>
void run(const GrnForward& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? forward<double>(p, parallel) : forward<float>(p, parallel);
}

template <>
void run(const GrnBackward& p, const Parallel& parallel) {
  p.map.dtype == DType::f64 ? backward<double>(p, parallel) : backward<float>(p, parallel);
}

}  // namespace chattn::cpu
