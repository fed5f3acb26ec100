// The softmax over branches on a GPU, for the apply pass, and what follows the sums over a plane.
#pragma once
#include "engine/cuda/apply.cuh"
#include "engine/cuda/operands.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// s = softmax over the M logits that start at `logits`, c apart.
template <int M, class A>
CHATTN_DEVICE void softmax(const A* logits, int c, A (&s)[M]) {
  A top = s[0] = ld(logits), total = A(0);
  CHATTN_UNROLL
  for (int b = 1; b < M; ++b) top = nan_max(top, s[b] = ld(logits + static_cast<index_t>(b) * c));
  CHATTN_UNROLL
  for (int b = 0; b < M; ++b) total += s[b] = exp(s[b] - top);  // so that nothing overflows
  CHATTN_UNROLL
  for (int b = 0; b < M; ++b) s[b] /= total;
}

// Forward: gate = softmax over M logits (N, M, C). The gate is not negative, so that with a
// prologue gate*relu(scale*x + shift) = relu((gate*scale)*x + gate*shift).
template <class T, int M, bool Prologue>
struct SoftmaxGate {
  using A = acc_t<T>;
  using Element = std::conditional_t<Prologue, PrologueSelect<M>, Select<M>>;
  static constexpr int kShared = 0;
  int c;
  const A* logits;
  const A* prologue;  // (2, M, C) or null

  CHATTN_DEVICE void prepare(const Shared<A>&, const Shared<A>& tiles, const TilePlace& p) const {
    for_gates(p, [&](int m, int i) {
      const index_t at = static_cast<index_t>(p.n0 + m) * M * c + p.c0 + i;
      const int t = m * kApplyChannels + i;
      A s[M];
      softmax(logits + at, c, s);
      CHATTN_UNROLL
      for (int b = 0; b < M; ++b) {
        if constexpr (Prologue) {
          const int row = b * c + p.c0 + i;
          tiles.st(b * kTileSize + t, s[b] * ld(prologue + row));
          tiles.st((M + b) * kTileSize + t, s[b] * ld(prologue + M * c + row));
        } else {
          tiles.st(b * kTileSize + t, s[b]);
        }
      }
    });
  }
};

// With a prologue of another activation: the gate, and behind it the prologue's numbers.
template <class T, int M>
struct ActivatedGate : SoftmaxGate<T, M, false> {
  using A = acc_t<T>;
  using Element = ActivatedSelect<A, M>;

  CHATTN_DEVICE void prepare(const Shared<A>& scratch, const Shared<A>& tiles,
                             const TilePlace& p) const {
    SoftmaxGate<T, M, false>::prepare(scratch, tiles, p);
    for_gates(p, [&](int m, int i) {
      CHATTN_UNROLL
      for (int b = 0; b < 2 * M; ++b)
        tiles.st((M + b) * kTileSize + m * kApplyChannels + i,
                 ld(this->prologue + b * this->c + p.c0 + i));
    });
  }
};

// Backward: dx_m = gate_m * g + dpooled / HW.
template <class T, int M>
struct SpreadGate {
  using A = acc_t<T>;
  using Element = Spread<M, (M > 1)>;
  static constexpr int kShared = 0;
  int c;
  const A *logits, *dpooled;  // dpooled may be null
  A hw;

  CHATTN_DEVICE void prepare(const Shared<A>&, const Shared<A>& tiles, const TilePlace& p) const {
    for_gates(p, [&](int m, int i) {
      const int n = p.n0 + m, channel = p.c0 + i, t = m * kApplyChannels + i;
      const index_t at = static_cast<index_t>(n) * M * c + channel;
      A s[M];
      softmax(logits + at, c, s);
      CHATTN_UNROLL
      for (int b = 0; b < M; ++b) tiles.st(b * kTileSize + t, s[b]);
      tiles.st(M * kTileSize + t, dpooled != nullptr
                                      ? ld(dpooled + static_cast<index_t>(n) * c + channel) / hw
                                      : A(0));
    });
  }
};

// pooled = the merged sums / HW; a thread per plane.
template <class A>
CHATTN_KERNEL(kThreads)
branch_mean(Partials<A> sum, int planes, A hw, A* pooled) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < planes) st(pooled + i, sum.sum(i) / hw);
}

template <class A, int M>
struct LogitGradient {
  Partials<A> dot[M];
  const A *logits, *given;  // (N, M, C); given: null, or what is added
  A* dlogits;
  int planes;
  FastDiv by_c;
};

// dlogits_m = gate_m (ds_m - sum_k gate_k ds_k) + given_m; a thread per plane.
template <class A, int M>
CHATTN_KERNEL(kThreads, 2)
logit_gradient(LogitGradient<A, M> a) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= a.planes) return;
  const int c = static_cast<int>(a.by_c.divisor), n = a.by_c.quotient(i);
  const index_t at = static_cast<index_t>(n) * M * c + (i - n * c);
  A s[M], ds[M], total = A(0);
  softmax(a.logits + at, c, s);
  CHATTN_UNROLL
  for (int b = 0; b < M; ++b) total += s[b] * (ds[b] = a.dot[b].sum(i));
  CHATTN_UNROLL
  for (int b = 0; b < M; ++b) {
    const A given = a.given != nullptr ? ld(a.given + at + b * c) : A(0);
    st(a.dlogits + at + b * c, s[b] * (ds[b] - total) + given);
  }
}

}  // namespace chattn::cuda
