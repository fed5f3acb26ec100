// What the gates multiply, and how a product is launched (engine/cuda/product.cuh).
#pragma once
#include "common/activation.h"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/operands.cuh"
#include "engine/cuda/product.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// ---- rows: (samples x k) accumulators
// Sums that were left in parts, times a number. One part and a scale of 1: a plain matrix.
template <class A>
struct SummedRows {
  template <int V>
  struct Given {};
  Partials<A> sums;
  int n, k;
  A scale = A(1);
  A* result = nullptr;  // where the finished values are kept, if anywhere
  int first = 0;
  CHATTN_DEVICE bool has(int m) const { return first + m < n; }
  CHATTN_DEVICE int parts() const { return sums.count; }
  template <int V>
  CHATTN_DEVICE Vec<A, V> part(int m, int c, int q) const {
    return load_vec<V>(sums.p + q * sums.stride + (first + m) * k + c);
  }
  template <int V>
  CHATTN_DEVICE Given<V> given(int, int) const {
    return {};
  }
  template <int V>
  CHATTN_DEVICE Vec<A, V> finish(int m, int c, Vec<A, V> v, const Given<V>&, bool store) const {
    CHATTN_UNROLL
    for (int e = 0; e < V; ++e) v[e] *= scale;
    if (store && result != nullptr) store_vec(result + (first + m) * k + c, v);
    return v;
  }
};

// ---- columns: weights, stored as rows (j, k) or as columns (k, j)
template <class T, bool kRows>
struct WeightColumns {
  using Type = T;
  static constexpr bool kAlongK = kRows;
  Weights<T> w;
  int k, r;
  bool words = false;  // set by launch_product
  int first = 0;
  CHATTN_DEVICE bool wide() const { return w.wide; }
  CHATTN_DEVICE bool has(int j) const { return first + j < r; }
  CHATTN_DEVICE int place(int j, int c) const {
    return kRows ? (first + j) * k + c : c * r + first + j;
  }
  CHATTN_DEVICE acc_t<T> at(int j, int c) const { return w.at(place(j, c)); }
  template <class W>
  CHATTN_DEVICE Vec<W, 16 / sizeof(W)> word(int j, int c) const {
    return load_vec<16 / sizeof(W)>(static_cast<const W*>(w.p) + place(j, c));
  }
};

// ---- outputs: (samples x r) accumulators
template <class T>
struct BiasedOut {
  using A = acc_t<T>;
  using Given = A;
  Weights<T> bias;  // p null: none
  A* result;
  CHATTN_DEVICE A given(int, int j) const { return bias.p == nullptr ? A(0) : bias.at(j); }
  CHATTN_DEVICE void put(int i, int, A v, A given) const { st(result + i, v + given); }
};

// The gradient in front of the activation.
template <class A>
struct ActivationGradOut {
  using Given = A;
  Act act;
  A param;
  const A* hidden;  // before the activation
  A* grad;
  CHATTN_DEVICE A given(int i, int) const { return ld(hidden + i); }
  CHATTN_DEVICE void put(int i, int, A v, A given) const {
    st(grad + i, activation_gradient(act, given, param, v));
  }
};

// ---- launch
// What of scratch memory a product uses: parts (splits, samples, r), if it is split, and counters.
template <class A>
struct ProductScratch {
  A* parts = nullptr;
  Arrivals arrivals;
};

template <class A, class Rows, class Columns, class Out>
Status launch_product(const char* name, const ProductPlan& plan, const Rows& rows, Columns columns,
                      const Out& out, const ProductScratch<A>& scratch, void* stream) {
  constexpr int kWord = 16 / static_cast<int>(sizeof(A));
  const int element = columns.wide() ? sizeof(A) : sizeof(typename Columns::Type);
  columns.words = (Columns::kAlongK ? columns.k : columns.r) * element % 16 == 0;
  ProductShape shape;
  shape.n = rows.n;
  shape.k = columns.k;
  shape.r = columns.r;
  while (1 << shape.split_shift < plan.splits) ++shape.split_shift;
  shape.by_output_tiles = FastDiv(static_cast<std::uint32_t>(plan.output_tiles));
  LaunchConfig config = blocks_of_threads(plan.blocks(), stream);
  const auto launch_as = [&](auto kernel, int shared, int width) {
    // Words of a row that a block stages at once, as a power of two.
    const index_t longest =
        std::min<index_t>(product_depth(sizeof(A)),
                          ceil_div(ceil_div(shape.k, kProductUnit), plan.splits) * kProductUnit);
    while (index_t{width} << shape.row_shift < longest) ++shape.row_shift;
    config.shared_bytes = sizeof(A) * shared + 16;
    if (plan.splits > 1 && has_clusters(kernel))
      config.cluster = static_cast<unsigned>(plan.splits);
    return launch(name, kernel, config, shape, rows, columns, out, scratch.parts, scratch.arrivals);
  };
  if (shape.k % kWord != 0)
    return launch_as(product<A, 16, 1, Rows, Columns, Out>, Product<A, 16, 1>::kShared, 1);
  if (plan.samples == 8)
    return launch_as(product<A, 8, kWord, Rows, Columns, Out>, Product<A, 8, kWord>::kShared,
                     kWord);
  return launch_as(product<A, 16, kWord, Rows, Columns, Out>, Product<A, 16, kWord>::kShared,
                   kWord);
}

}  // namespace chattn::cuda
