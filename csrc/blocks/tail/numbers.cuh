// The numbers of (N, C) and (C) between a tail's passes. Sums over samples are float64.
#pragma once
#include "blocks/tail/elements.cuh"
#include "blocks/tail/plan.h"
#include "engine/cuda/operands.cuh"
#include "engine/cuda/running.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// A thread's channel, and the first of its samples.
struct ChannelPlace {
  int tid, row, channel;
  CHATTN_DEVICE ChannelPlace()
      : tid(static_cast<int>(threadIdx.x)),
        row(tid / kTailChannels),
        channel(static_cast<int>(blockIdx.x) * kTailChannels + tid % kTailChannels) {}

  // body(values) for those of the channel's other rows, in their order; called by the first.
  template <int K, class Body>
  CHATTN_DEVICE void for_rows(const Shared<double>& rows, Body&& body) const {
    CHATTN_UNROLL_BY(1)
    for (int r = 1; r < kTailSamples; ++r) {
      double v[K];
      CHATTN_UNROLL
      for (int k = 0; k < K; ++k) v[k] = rows.ld(k * kThreads + r * kTailChannels + tid);
      body(v);
    }
  }
};

// ---- statistics
template <class T>
struct StatisticsArgs {
  using A = acc_t<T>;
  Partials<A> of_planes[4];                                 // of MomentsOp; null: none
  Weights<T> weight, bias, running_mean, running_variance;  // null: 1, 0, of the batch
  int n, c;
  double eps;
  RunningOut<T> running;
  A *numbers, *variance;  // numbers null: means alone are wanted
  A *means, *pooled;
};

// Of a plane, whose parts are merged into `total`, too. Chan's formula, without its divisions.
template <class A>
CHATTN_DEVICE double mean_of(const Partials<A> (&parts)[4], int plane, double (&total)[4]) {
  double all[4] = {};
  CHATTN_UNROLL_BY(1)
  for (int q = 0; q < parts[0].count; ++q) {
    double part[4];
    CHATTN_UNROLL
    for (int o = 0; o < 4; ++o) part[o] = parts[o].part(plane, q);
    merge_moments(all, part);
  }
  merge_moments(total, all);
  return all[1] + all[2] / all[0];
}

constexpr int kStatisticsRows = 4 * kThreads;  // float64 in shared memory
constexpr int kNormNumbers = 3 * kTailChannels;

template <class T>
CHATTN_KERNEL(kThreads)
tail_statistics(StatisticsArgs<T> a) {
  using A = acc_t<T>;
  const ChannelPlace p;
  const bool within = p.channel < a.c;
  double total[4] = {};
  if (within && a.of_planes[0].p != nullptr) {
    CHATTN_UNROLL_BY(1)
    for (int n = p.row; n < a.n; n += kTailSamples) {
      const int i = n * a.c + p.channel;
      const double mean = mean_of(a.of_planes, i, total);
      if (a.means != nullptr) st(a.means + i, static_cast<A>(mean));
    }
  }
  if (a.numbers == nullptr) return;
  const Shared<double> rows = shared<double>(0, kStatisticsRows);
  const Shared<A> norm = shared<A>(sizeof(double) * kStatisticsRows, kNormNumbers);
  CHATTN_UNROLL
  for (int o = 0; o < 4; ++o) rows.st(o * kThreads + p.tid, total[o]);
  __syncthreads();
  const int column = p.tid % kTailChannels;
  if (p.row == 0 && within) {
    double mean, variance;
    if (a.running_mean.p != nullptr) {
      mean = a.running_mean.at(p.channel);
      variance = a.running_variance.at(p.channel);
    } else {
      p.for_rows<4>(rows, [&](const double (&v)[4]) { merge_moments(total, v); });
      const double d = total[2] / total[0];
      mean = total[1] + d;
      variance = (total[3] - d * total[2]) / total[0];
      st(a.variance + p.channel, static_cast<A>(variance));
      a.running.follow(p.channel, static_cast<A>(mean), static_cast<A>(variance), total[0]);
    }
    const double inverse = 1 / sqrt(variance + a.eps);
    const double scale = a.weight.p == nullptr ? inverse : a.weight.at(p.channel) * inverse;
    const double bias = a.bias.p == nullptr ? 0 : a.bias.at(p.channel);
    st(a.numbers + kTailScale * a.c + p.channel, static_cast<A>(scale));
    st(a.numbers + kTailShift * a.c + p.channel, static_cast<A>(bias - mean * scale));
    st(a.numbers + kTailMean * a.c + p.channel, static_cast<A>(mean));
    st(a.numbers + kTailDeviation * a.c + p.channel, static_cast<A>(inverse));
    norm.st(column, static_cast<A>(scale));
    norm.st(kTailChannels + column, static_cast<A>(mean));
    norm.st(2 * kTailChannels + column, static_cast<A>(bias));
  }
  if (a.pooled == nullptr) return;
  __syncthreads();
  if (!within) return;
  const A scale = norm.ld(column), mean = norm.ld(kTailChannels + column);
  const A bias = norm.ld(2 * kTailChannels + column);
  CHATTN_UNROLL_BY(1)
  for (int n = p.row; n < a.n; n += kTailSamples) {
    const int i = n * a.c + p.channel;
    st(a.pooled + i, scale * (ld(a.means + i) - mean) + bias);
  }
}

// ---- sums over planes, and the gate's gradient
template <class A>
struct SumsArgs {
  const A* parts;  // (sums of the fold, splits, N, C), without those that are not wanted
  int splits, planes, c, rows;
  const A* numbers;
  A *sums, *dgate;
};

template <class A>
CHATTN_KERNEL(kThreads)
tail_sums(SumsArgs<A> a) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= a.planes) return;
  const int n = i / a.c, c = i - n * a.c;
  const index_t row = static_cast<index_t>(a.splits) * a.planes;
  A dgate = 0;
  CHATTN_UNROLL_BY(1)
  for (int r = 0; r < a.rows; ++r) {
    const A sum = Partials<A>{a.parts + r * row, a.splits, a.planes}.sum(i);
    st(a.sums + (static_cast<index_t>(n) * a.rows + r) * a.c + c, sum);
    if (r == 0) dgate = sum;
    if (a.rows > 2 || a.dgate == nullptr) continue;
    const A scale = ld(a.numbers + kTailScale * a.c + c);
    if (r == 0)
      dgate *= scale * ld(a.numbers + kTailMean * a.c + c) + ld(a.numbers + kTailShift * a.c + c);
    else
      dgate += scale * sum;
  }
  if (a.dgate != nullptr) st(a.dgate + i, dgate);
}

// ---- gradients of the norm: of its shift, and of its scale by what it multiplies
template <class T>
struct NormArgs {
  using A = acc_t<T>;
  const A *sums, *means, *dpooled, *gate, *numbers;
  int n, c, rows;
  double hw, each;  // 1 / HW
  WeightsOut<T> dweight, dbias;
  A* lost;  // (2, C), constant and slope; null: statistics that do not depend on x
};

template <class T>
CHATTN_KERNEL(kThreads)
tail_norm(NormArgs<T> a) {
  using A = acc_t<T>;
  const ChannelPlace p;
  const bool within = p.channel < a.c, plain = a.rows == 2;
  double dshift = 0, dscale = 0;
  if (within) {
    const double mean = ld(a.numbers + kTailMean * a.c + p.channel);
    CHATTN_UNROLL_BY(1)
    for (int n = p.row; n < a.n; n += kTailSamples) {
      const int i = n * a.c + p.channel;
      const A* const sums =
          a.sums + (static_cast<index_t>(n) * a.rows + (plain ? 0 : 1)) * a.c + p.channel;
      const double gate = a.gate == nullptr ? 1 : ld(a.gate + i);
      dshift += gate * ld(sums);
      dscale += gate * ld(sums + a.c);
      if (a.dpooled == nullptr) continue;
      const double d = ld(a.dpooled + i) * a.each;
      dshift += d * (plain ? a.hw : ld(sums + 2 * a.c));
      dscale += d * (plain ? a.hw * (ld(a.means + i) - mean) : ld(sums + 3 * a.c));
    }
  }
  const Shared<double> rows = shared<double>(0, 2 * kThreads);
  rows.st(p.tid, dshift);
  rows.st(kThreads + p.tid, dscale);
  __syncthreads();
  if (p.row != 0 || !within) return;
  p.for_rows<2>(rows, [&](const double (&v)[2]) {
    dshift += v[0];
    dscale += v[1];
  });
  const double inverse = ld(a.numbers + kTailDeviation * a.c + p.channel);
  if (a.dweight.p != nullptr) a.dweight.put(p.channel, static_cast<A>(dscale * inverse));
  if (a.dbias.p != nullptr) a.dbias.put(p.channel, static_cast<A>(dshift));
  if (a.lost == nullptr) return;
  const double each = ld(a.numbers + kTailScale * a.c + p.channel) * (a.each / a.n);
  st(a.lost + p.channel, static_cast<A>(each * dshift));
  st(a.lost + a.c + p.channel, static_cast<A>(each * inverse * inverse * dscale));
}

}  // namespace chattn::cuda
