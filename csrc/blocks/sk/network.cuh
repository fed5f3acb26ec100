// The network of a selective kernel on a GPU: products as the MLP gate's, and between them the norm
// of the hidden values.
#pragma once
#include "blocks/sk/params.h"
#include "blocks/sk/plan.h"
#include "engine/cuda/product_launch.cuh"
#include "engine/cuda/running.cuh"
#include "engine/cuda/tile_product.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// ---- the norm, and where the hidden values go
// The norm's numbers of a hidden unit; those that are not there are null.
template <class T>
struct UnitNorm {
  using A = acc_t<T>;
  Weights<T> mean, variance, weight, bias;
  A eps = 0;

  CHATTN_DEVICE A inverse(A of_variance) const { return A(1) / sqrt(of_variance + eps); }
  CHATTN_DEVICE A weight_at(int j) const { return weight.p != nullptr ? weight.at(j) : A(1); }
  CHATTN_DEVICE A bias_at(int j) const { return bias.p != nullptr ? bias.at(j) : A(0); }
};

// What becomes of the sum for hidden unit j. A norm by the batch's statistics comes later.
template <class T>
struct UnitOut {
  using A = acc_t<T>;
  struct Given {
    A bias, mean, scale, shift;
  };
  Weights<T> bias;
  UnitNorm<T> norm;  // mean null: none, or none yet
  bool relu;
  A *hidden, *activated;  // before the norm; null: not wanted
  CHATTN_DEVICE Given given(int, int j) const {
    Given g{A(0), A(0), A(1), A(0)};
    if (bias.p != nullptr) g.bias = bias.at(j);
    if (norm.mean.p != nullptr) {
      g.mean = norm.mean.at(j);
      g.scale = norm.inverse(norm.variance.at(j)) * norm.weight_at(j);
      g.shift = norm.bias_at(j);
    }
    return g;
  }
  CHATTN_DEVICE void put(int i, int, A v, const Given& g) const {
    v += g.bias;
    if (hidden != nullptr) st(hidden + i, v);
    if (activated == nullptr) return;
    if (norm.mean.p != nullptr) v = (v - g.mean) * g.scale + g.shift;
    st(activated + i, relu ? activate(Act::relu, v, A(0)) : v);
  }
};

// ---- the norm between the products: a block has kNormUnits hidden units of all samples
constexpr int kNormRows = kThreads / kNormUnits;
static_assert(kWarp % kNormUnits == 0);

// The sum over a unit's threads, for each of them; in double, because the digits of many samples
// with a large mean are lost otherwise. `at`: kWarps * kNormUnits numbers that nobody else uses.
CHATTN_DEVICE double sum_of_unit(double v, const Shared<double>& s, int at) {
  const int tid = static_cast<int>(threadIdx.x), unit = tid % kNormUnits;
  CHATTN_UNROLL
  for (int lanes = kNormUnits; lanes < kWarp; lanes *= 2) v += __shfl_xor_sync(kFullMask, v, lanes);
  if (tid % kWarp < kNormUnits) s.st(at + tid / kWarp * kNormUnits + unit, v);
  __syncthreads();
  double total = 0;
  CHATTN_UNROLL
  for (int w = 0; w < kWarps; ++w) total += s.ld(at + w * kNormUnits + unit);
  return total;
}

// For the samples of a thread's unit: use(place in (samples x d), load(place)). The loads of a
// batch are in flight together.
template <class Load, class Use>
CHATTN_DEVICE void for_samples(int samples, int d, int unit, const Load& load, const Use& use) {
  constexpr int kBatch = 4;
  if (unit >= d) return;
  const int first = static_cast<int>(threadIdx.x) / kNormUnits;
  for (int n0 = first; n0 < samples; n0 += kBatch * kNormRows) {
    decltype(load(0)) values[kBatch];
    CHATTN_UNROLL
    for (int q = 0; q < kBatch; ++q) {
      const int n = n0 + q * kNormRows;
      if (n < samples) values[q] = load(n * d + unit);
    }
    CHATTN_UNROLL
    for (int q = 0; q < kBatch; ++q) {
      const int n = n0 + q * kNormRows;
      if (n < samples) use(n * d + unit, values[q]);
    }
  }
}

template <class T>
struct BatchNormArgs {
  using A = acc_t<T>;
  int samples, d;
  UnitNorm<T> norm;  // mean and variance null
  bool relu;
  const A* hidden;
  A *activated, *mean, *variance;
  RunningOut<T> running;
};

// activated = act(norm by the statistics of the batch); the running ones follow.
template <class T>
CHATTN_KERNEL(kThreads, 1)
norm_of_batch(BatchNormArgs<T> a) {
  using A = acc_t<T>;
  const int tid = static_cast<int>(threadIdx.x);
  const int unit = static_cast<int>(blockIdx.x) * kNormUnits + tid % kNormUnits;
  const Shared<double> s = shared<double>(0, 2 * kWarps * kNormUnits);
  const double count = static_cast<double>(a.samples);
  const auto load = [&](int i) { return ld(a.hidden + i); };
  double total = 0;
  for_samples(a.samples, a.d, unit, load, [&](int, A v) { total += v; });
  const double mean = sum_of_unit(total, s, 0) / count;
  total = 0;
  for_samples(a.samples, a.d, unit, load, [&](int, A v) { total += (v - mean) * (v - mean); });
  const double squares = sum_of_unit(total, s, kWarps * kNormUnits);
  if (unit >= a.d) return;
  const A centre = static_cast<A>(mean), variance = static_cast<A>(squares / count);
  if (tid < kNormUnits) {
    st(a.mean + unit, centre);
    st(a.variance + unit, variance);
    a.running.follow(unit, centre, variance, count);
  }
  const A scale = a.norm.inverse(variance) * a.norm.weight_at(unit), bias = a.norm.bias_at(unit);
  for_samples(a.samples, a.d, unit, load, [&](int i, A v) {
    v = (v - centre) * scale + bias;
    st(a.activated + i, a.relu ? activate(Act::relu, v, A(0)) : v);
  });
}

template <class T>
struct NormGradientArgs {
  using A = acc_t<T>;
  int samples, d;
  UnitNorm<T> norm;
  bool of_batch;
  const A *hidden, *grad;        // grad: of what the norm gave
  A* result;                     // the gradient of what it was given
  WeightsOut<T> dweight, dbias;  // null: not wanted
  WeightsOut<T> db_reduce;       // of the bias before it; only of_batch
};

// Fixed statistics hand on nothing from one sample to another, not even a NaN.
template <class T>
CHATTN_KERNEL(kThreads, 1)
norm_gradient(NormGradientArgs<T> a) {
  using A = acc_t<T>;
  struct Pair {
    A grad, normal;
  };
  const int tid = static_cast<int>(threadIdx.x);
  const int unit = static_cast<int>(blockIdx.x) * kNormUnits + tid % kNormUnits;
  const Shared<double> s = shared<double>(0, 2 * kWarps * kNormUnits);
  const int known = min(unit, a.d - 1);  // threads beyond the last unit help with the barriers
  const A centre = a.norm.mean.at(known), inverse = a.norm.inverse(a.norm.variance.at(known));
  const auto load = [&](int i) {
    return Pair{ld(a.grad + i), (ld(a.hidden + i) - centre) * inverse};
  };
  double sum = 0, product = 0;
  for_samples(a.samples, a.d, unit, load, [&](int, const Pair& v) {
    sum += v.grad;
    product += v.grad * v.normal;
  });
  sum = sum_of_unit(sum, s, 0);
  product = sum_of_unit(product, s, kWarps * kNormUnits);
  if (unit >= a.d) return;
  if (tid < kNormUnits) {
    if (a.dweight.p != nullptr) a.dweight.put(unit, static_cast<A>(product));
    if (a.dbias.p != nullptr) a.dbias.put(unit, static_cast<A>(sum));
    // The batch's mean takes a bias away: zero, and not the rounding of a sum.
    if (a.db_reduce.p != nullptr) a.db_reduce.put(unit, A(0));
  }
  const A scale = inverse * a.norm.weight_at(unit);
  const A mean_sum = static_cast<A>(sum / a.samples);
  const A mean_product = static_cast<A>(product / a.samples);
  for_samples(a.samples, a.d, unit, load, [&](int i, const Pair& v) {
    st(a.result + i, scale * (a.of_batch ? v.grad - mean_sum - v.normal * mean_product : v.grad));
  });
}

// ---- gradients of the weights: dw = left^T right, db = the sum of left's rows
template <class T>
struct OuterProduct {
  using A = acc_t<T>;
  const A *left, *right;  // (samples x rows), (samples x columns)
  int rows, columns;
  WeightsOut<T> dw, db;  // null: not wanted

  CHATTN_HD int blocks() const {
    if (dw.p == nullptr && db.p == nullptr) return 0;
    return weight_tiles(rows, dw.p == nullptr ? 1 : columns);
  }
};

template <class A>
using OuterTile = TileProduct<A, kWeightRows, kWeightColumns, sizeof(A) == 8 ? 8 : 16>;

// Grid: first the tiles of one product, then those of the other.
template <class T>
CHATTN_KERNEL(kThreads, 1)
outer_products(int samples, OuterProduct<T> one, OuterProduct<T> other) {
  using A = acc_t<T>;
  using Tile = OuterTile<A>;
  const int block = static_cast<int>(blockIdx.x), tid = static_cast<int>(threadIdx.x);
  const bool first = block < one.blocks();
  const OuterProduct<T> a = first ? one : other;
  const int tile = first ? block : block - one.blocks();
  const int across = a.dw.p == nullptr ? 1 : (a.columns - 1) / kWeightColumns + 1;
  const int m0 = tile / across * kWeightRows, n0 = tile % across * kWeightColumns;
  const ValueTile<A, false> rows{a.left, a.rows, a.rows - m0, m0};
  const ValueTile<A, false> columns{a.right, a.columns, a.columns - n0, n0};
  const Shared<A> scratch = shared<A>(0, Tile::kOperands);
  A total = A(0);  // of row tid: the bias's gradient
  Tile sums;
  sums.run(scratch, samples, rows, columns, [&](int count) {
    if (tid >= kWeightRows || n0 > 0) return;
    for (int k = 0; k < count; ++k) total += scratch.ld(k * Tile::kStrideM + tid);
  });
  if (a.db.p != nullptr && tid < kWeightRows && n0 == 0 && m0 + tid < a.rows)
    a.db.put(m0 + tid, total);
  if (a.dw.p == nullptr) return;
  sums.each([&](int m, int n, A v) {
    if (m0 + m < a.rows && n0 + n < a.columns) a.dw.put((m0 + m) * a.columns + n0 + n, v);
  });
}

// ---- batch norms in front of the branches
// Grid: M*C channels, one per thread. prologue: (2, M*C), scale and shift.
template <class T>
struct PrologueArgs {
  UnitNorm<T> norm[kMaxBranches];
  int rows, each;  // M*C; channels of a norm
  acc_t<T>* prologue;
};

template <class T>
CHATTN_KERNEL(kThreads)
norm_prologue(PrologueArgs<T> a) {
  using A = acc_t<T>;
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  CHATTN_UNROLL
  for (int q = 0; q < kMaxBranches; ++q) {  // a.norm[i / a.each] would put all of it on the stack
    const int c = i - q * a.each;
    if (c < 0 || c >= a.each || i >= a.rows) continue;
    const UnitNorm<T>& norm = a.norm[q];
    const A scale = norm.weight.at(c) * norm.inverse(norm.variance.at(c));
    st(a.prologue + i, scale);
    st(a.prologue + a.rows + i, norm.bias.at(c) - norm.mean.at(c) * scale);
  }
}

}  // namespace chattn::cuda
