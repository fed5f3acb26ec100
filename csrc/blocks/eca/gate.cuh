// The convolution gate on a GPU, for the apply pass, and the gradient of its weights.
#pragma once
#include "blocks/eca/params.h"
#include "blocks/eca/plan.h"
#include "engine/cuda/apply.cuh"
#include "engine/cuda/operands.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

template <class T>
struct Convolution {
  using A = acc_t<T>;
  int n = 0, c = 0, taps = 1, reach = 0;
  bool per_channel = false, circular = false;
  Act gate = Act::sigmoid;
  A hw = 1;
  Weights<T> w;

  CHATTN_DEVICE int wrapped(int channel) const { return wrapped_channel(channel, c, circular); }
  CHATTN_DEVICE A weight(int channel, int tap) const {
    return w.at(per_channel ? channel * taps + tap : tap);
  }
};

// The gradient before the gate function.
template <class A>
struct ConvGateGrad {
  Partials<A> dot;
  const A *dgate, *scale;
  CHATTN_DEVICE A at(int plane, Act gate) const {
    A v = dot.sum(plane);
    if (dgate != nullptr) v += ld(dgate + plane);
    return gate_gradient(gate, ld(scale + plane), v);
  }
};

// ---- a tile of gates
constexpr int kTapsAtOnce = 32;
constexpr int kConvWindow = kApplyChannels + kTapsAtOnce;
constexpr int kConvShared = kApplySamples * kConvWindow + kTapsAtOnce;

// out(sample, channel, sum_j w[j] v(channel + j - reach)) over the tile or, transposed, the sum of
// w[j] v(channel - j + reach). `value(plane)` is staged once for the gates that need it.
template <bool kTransposed, class T, class Value, class Out>
CHATTN_DEVICE void convolve(const Convolution<T>& conv, const Shared<acc_t<T>>& scratch,
                            const TilePlace& p, Value&& value, Out&& out) {
  using A = acc_t<T>;
  constexpr int kEach = kTileSize / kThreads, kTapsAt = kApplySamples * kConvWindow;
  const int tid = static_cast<int>(threadIdx.x);
  A total[kEach] = {};
  for (int j0 = 0; j0 < conv.taps; j0 += kTapsAtOnce) {
    const int steps = min(conv.taps - j0, kTapsAtOnce), width = p.channels + steps - 1;
    const int first = p.c0 + j0 - conv.reach;
    if (j0 > 0) __syncthreads();
    for (int i = tid; i < p.samples * width; i += kThreads) {
      const int m = i / width, q = i % width, channel = conv.wrapped(first + q);
      scratch.st(m * kConvWindow + q, channel < 0 ? A(0) : value((p.n0 + m) * conv.c + channel));
    }
    if (!conv.per_channel && tid < steps)
      scratch.st(kTapsAt + tid, conv.weight(0, kTransposed ? conv.taps - 1 - j0 - tid : j0 + tid));
    __syncthreads();
    CHATTN_UNROLL
    for (int o = 0; o < kEach; ++o) {
      const int m = (o * kThreads + tid) / kApplyChannels, i = tid % kApplyChannels;
      if (m >= p.samples || i >= p.channels) continue;
      for (int j = 0; j < steps; ++j) {
        A tap = 0;
        if (!conv.per_channel) {
          tap = scratch.ld(kTapsAt + j);
        } else if (!kTransposed) {
          tap = conv.weight(p.c0 + i, j0 + j);
        } else if (const int from = conv.wrapped(first + i + j); from >= 0) {
          tap = conv.weight(from, conv.taps - 1 - j0 - j);
        }
        total[o] += tap * scratch.ld(m * kConvWindow + i + j);
      }
    }
  }
  CHATTN_UNROLL
  for (int o = 0; o < kEach; ++o) {
    const int m = (o * kThreads + tid) / kApplyChannels, i = tid % kApplyChannels;
    if (m < p.samples && i < p.channels) out(m, i, total[o]);
  }
}

// Forward: s = gate(w * p).
template <class T>
struct ConvForwardGate {
  using A = acc_t<T>;
  using Element = Scale;
  static constexpr int kShared = kConvShared;
  Convolution<T> conv;
  Partials<A> total;
  A *pooled, *scale;

  CHATTN_DEVICE void prepare(const Shared<A>& scratch, const Shared<A>& tiles,
                             const TilePlace& p) const {
    const auto mean = [&](int plane) { return total.sum(plane) / conv.hw; };
    convolve<false>(conv, scratch, p, mean, [&](int m, int i, A z) {
      const A s = activate(conv.gate, z, A(0));
      tiles.st(m * kApplyChannels + i, s);
      if (p.part != 0) return;
      const int plane = (p.n0 + m) * conv.c + p.c0 + i;
      st(scale + plane, s);
      st(pooled + plane, mean(plane));
    });
  }
};

// Backward: what every position receives besides s*g, from dp, the transposed convolution of dz.
template <class T>
struct ConvBackwardGate {
  using A = acc_t<T>;
  using Element = Spread<>;
  static constexpr int kShared = kConvShared;
  Convolution<T> conv;
  ConvGateGrad<A> dz;

  CHATTN_DEVICE void prepare(const Shared<A>& scratch, const Shared<A>& tiles,
                             const TilePlace& p) const {
    const auto gradient = [&](int plane) { return dz.at(plane, conv.gate); };
    convolve<true>(conv, scratch, p, gradient, [&](int m, int i, A dp) {
      const int t = m * kApplyChannels + i;
      tiles.st(t, ld(dz.scale + (p.n0 + m) * conv.c + p.c0 + i));
      tiles.st(kTileSize + t, dp / conv.hw);
    });
  }
};

// ---- weight gradients: dw[j] = sum dz[n, c] p[n, c + j - reach]
template <class T>
struct ConvGradArgs {
  using A = acc_t<T>;
  Convolution<T> conv;
  ConvGateGrad<A> dz;
  const A* pooled;
  A* part;  // (parts, weights)
};

// Grid: channel tiles, splits of the samples, tiles of taps. A thread owns a channel, and adds up
// every kGradRows-th sample of its split.
template <class T, bool kPerChannel>
CHATTN_KERNEL(kThreads, 2)
conv_weight_parts(ConvGradArgs<T> a) {
  using A = acc_t<T>;
  const Convolution<T>& conv = a.conv;
  const int tid = static_cast<int>(threadIdx.x);
  const int i = tid % kGradChannels, row = tid / kGradChannels;
  const int c0 = static_cast<int>(blockIdx.x) * kGradChannels, channel = c0 + i;
  const int split = static_cast<int>(blockIdx.y), splits = static_cast<int>(gridDim.y);
  const int j0 = static_cast<int>(blockIdx.z) * kGradTaps, taps = min(conv.taps - j0, kGradTaps);

  A total[kGradTaps] = {};
  if (channel < conv.c) {
    int from[kGradTaps];
    CHATTN_UNROLL
    for (int j = 0; j < kGradTaps; ++j)
      from[j] = j < taps ? conv.wrapped(channel + j0 + j - conv.reach) : -1;
    const int end = split_at(conv.n, split + 1, splits);
    for (int n = split_at(conv.n, split, splits) + row; n < end; n += kGradRows) {
      const A d = a.dz.at(n * conv.c + channel, conv.gate);
      CHATTN_UNROLL
      for (int j = 0; j < kGradTaps; ++j)
        if (from[j] >= 0) total[j] += d * ld(a.pooled + n * conv.c + from[j]);
    }
  }

  if constexpr (kPerChannel) {
    Shared<A> rows = shared<A>(0, kGradTaps * kThreads);
    CHATTN_UNROLL
    for (int j = 0; j < kGradTaps; ++j) rows.st(j * kThreads + tid, total[j]);
    __syncthreads();
    for (int j = row; j < taps; j += kGradRows) {
      if (channel >= conv.c) continue;
      A sum = rows.ld(j * kThreads + i);
      CHATTN_UNROLL
      for (int r = 1; r < kGradRows; ++r) sum += rows.ld(j * kThreads + r * kGradChannels + i);
      st(a.part + (static_cast<index_t>(split) * conv.c + channel) * conv.taps + j0 + j, sum);
    }
  } else {
    Shared<A> warps = shared<A>(0, kGradTaps * kWarps);
    CHATTN_UNROLL
    for (int j = 0; j < kGradTaps; ++j) {
      const A sum = warp_sum(total[j]);
      if (tid % kWarp == 0) warps.st(j * kWarps + tid / kWarp, sum);
    }
    __syncthreads();
    if (tid < taps) {
      A sum = warps.ld(tid * kWarps);
      CHATTN_UNROLL
      for (int w = 1; w < kWarps; ++w) sum += warps.ld(tid * kWarps + w);
      const int part = split * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
      st(a.part + part * conv.taps + j0 + tid, sum);
    }
  }
}

// kLanes threads per weight; each adds up every kLanes-th part.
template <class T, int kLanes>
CHATTN_KERNEL(kThreads)
conv_weight_sum(Partials<acc_t<T>> part, int count, WeightsOut<T> dweight) {
  const int thread = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int i = thread / kLanes;
  acc_t<T> sum = 0;
  if (i < count) {
    for (int q = thread % kLanes; q < part.count; q += kLanes) sum += part.part(i, q);
  }
  sum = warp_sum<kLanes>(sum);
  if (i < count && thread % kLanes == 0) dweight.put(i, sum);
}

}  // namespace chattn::cuda
