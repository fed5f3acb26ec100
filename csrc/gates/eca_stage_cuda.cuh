// Efficient channel attention forward in one launch, with one read of the map (NCHW).
#pragma once
#include "engine/cuda/fast_div.h"
#include "gates/conv1d_cuda.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

template <class T>
struct StageArgs {
  using A = acc_t<T>;
  Convolution<T> conv;
  StagePlan plan;
  bool exchange = false;  // the cluster holds the whole sample
  FastDiv by_hw;
  const T* x;
  T* y;
  A *pooled, *scale;
};

// Planes in shared memory, as they lie in the map: its 16-byte words are words here.
template <class T, int V>
struct StagedRun {
  Shared<T> words;
  index_t base = 0;  // of the first element, in the map
  int length = 0, skew = 0;

  CHATTN_DEVICE StagedRun(const StageArgs<T>& a, int byte_offset, index_t plane, int planes)
      : words(
            shared<T>(byte_offset,
                      static_cast<int>((planes * index_t{a.by_hw.divisor} + V - 1) / V * V + V))) {
    const int hw = static_cast<int>(a.by_hw.divisor);
    base = plane * hw;
    length = planes * hw;
    skew = static_cast<int>(base % V);
  }
  CHATTN_DEVICE int count() const { return length == 0 ? 0 : (skew + length + V - 1) / V; }
  CHATTN_DEVICE bool whole(int e) const { return e >= 0 && e + V <= length; }

  // All words of a batch are asked for before the first of them is stored (see ReduceIo::walk), and
  // before them the elements of words that the planes share with their neighbours.
  CHATTN_DEVICE void load(const T* x) const {
    constexpr int kBatch = 4;
    const int tid = static_cast<int>(threadIdx.x);
    const int body = min(length, skew ? V - skew : 0), count = (length - body) / V;
    const int ends[2] = {tid, body + count * V + tid};
    const bool within[2] = {tid < body, ends[1] < length};
    T end[2];
    CHATTN_UNROLL
    for (int e = 0; e < 2; ++e) {
      if (within[e]) end[e] = ld(x + base + ends[e]);
    }
    int i = tid;
    CHATTN_UNROLL_BY(1)
    do {
      // Words, not Vec<T, V>, whose elements the compiler would take apart as soon as they come.
      Vec<unsigned, 4> word[kBatch];
      static_assert(sizeof(word[0]) == sizeof(Vec<T, V>));
      CHATTN_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        if (i + b * kThreads >= count) continue;
        const T* const from = x + base + body + (i + b * kThreads) * V;
        word[b] = load_vec<4>(reinterpret_cast<const unsigned*>(from));
      }
      CHATTN_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        if (i + b * kThreads >= count) continue;
        Vec<T, V> v;
        memcpy(&v, &word[b], sizeof v);
        words.template stv<V>(skew + body + (i + b * kThreads) * V, v);
      }
      i += kBatch * kThreads;
    } while (i < count);
    CHATTN_UNROLL
    for (int e = 0; e < 2; ++e) {
      if (within[e]) words.st(skew + ends[e], end[e]);
    }
  }
  CHATTN_DEVICE acc_t<T> at(int i) const { return to_acc(words.ld(skew + i)); }
  // One lane's share of a plane.
  CHATTN_DEVICE acc_t<T> lane_sum(int plane, int hw, int lane, int lanes) const {
    acc_t<T> sum = 0;
    for (int i = lane; i < hw; i += lanes) sum += at(plane * hw + i);
    return sum;
  }
};

// Block: a tile of channels of a sample; the blocks of a sample are neighbours.
template <class T, int V>
CHATTN_KERNEL(kThreads)
stage_planes(StageArgs<T> a) {
  using A = acc_t<T>;
  const Convolution<T>& conv = a.conv;
  const StagePlan& plan = a.plan;
  const int tid = static_cast<int>(threadIdx.x), hw = static_cast<int>(a.by_hw.divisor);
  const int n = static_cast<int>(blockIdx.x) / plan.tiles;
  const int c0 = static_cast<int>(blockIdx.x) % plan.tiles * plan.tile;
  const int channels = min(conv.c - c0, plan.tile), behind = c0 + channels;
  const int plane = n * conv.c + c0;
  // Planes at the sides; where they wrap around, all of them do.
  const bool alone = !a.exchange && plan.tiles > 1;
  const int left = alone && (c0 > 0 || conv.circular) ? conv.reach : 0;
  const int right = !alone ? 0 : min(conv.reach, conv.circular ? conv.reach : conv.c - behind);

  const StagedRun<T, V> own(a, 0, plane, channels);
  const StagedRun<T, V> low(a, plan.before, n * conv.c + (c0 > 0 ? c0 : conv.c) - left, left);
  const StagedRun<T, V> high(a, plan.behind, n * conv.c + (behind < conv.c ? behind : 0), right);
  own.load(a.x);
  low.load(a.x);
  high.load(a.x);
  __syncthreads();

  const Shared<A> means = shared<A>(plan.means, plan.tile + 2 * conv.reach);
  const int groups = kThreads / plan.lanes, group = tid / plan.lanes, lane = tid % plan.lanes;
  for (int p0 = -conv.reach; p0 < channels + conv.reach; p0 += groups) {
    const int p = p0 + group;
    A sum = 0;
    // Not one loop over a chosen run: to choose, the compiler keeps all three in local memory.
    if (p >= 0 && p < channels) {
      sum = own.lane_sum(p, hw, lane, plan.lanes);
    } else if (p < 0 && p >= -left) {
      sum = low.lane_sum(p + left, hw, lane, plan.lanes);
    } else if (p >= channels && p < channels + right) {
      sum = high.lane_sum(p - channels, hw, lane, plan.lanes);
    }
    for (int bit = plan.lanes >> 1; bit > 0; bit >>= 1) sum += __shfl_xor_sync(kFullMask, sum, bit);
    if (lane == 0 && p < channels + conv.reach) {
      means.st(conv.reach + p, sum / conv.hw);
      if (p >= 0 && p < channels) st(a.pooled + plane + p, sum / conv.hw);
    }
  }
  cluster_sync();

  const Shared<A> gates = shared<A>(plan.gates, plan.tile);
  for (int i = tid; i < channels; i += kThreads) {
    A z = 0;
    for (int j = 0; j < conv.taps; ++j) {
      const int near = i + j - conv.reach;
      A mean = 0;
      if (alone || (near >= 0 && near < channels)) {
        mean = means.ld(conv.reach + near);
      } else if (const int channel = conv.wrapped(c0 + near); channel >= 0) {
        const int rank = channel / plan.tile;
        mean = means.at_rank(rank).ld(conv.reach + channel - rank * plan.tile);
      }
      z += conv.weight(c0 + i, j) * mean;
    }
    const A s = activate(conv.gate, z, A(0));
    gates.st(i, s);
    st(a.scale + plane + i, s);
  }
  cluster_sync();

  for (int i = tid; i < own.count(); i += kThreads) {
    const int e = i * V - own.skew;
    if (own.whole(e)) {
      const Vec<T, V> v = own.words.template ldv<V>(i * V);
      Vec<T, V> r;
      int channel = a.by_hw.quotient(e), position = e - channel * hw;
      CHATTN_UNROLL
      for (int k = 0; k < V; ++k) {
        r[k] = from_acc<T>(gates.ld(channel) * to_acc(v[k]));
        if (++position == hw) {
          position = 0;
          ++channel;
        }
      }
      store_vec(a.y + own.base + e, r);
    } else {
      for (int q = e < 0 ? 0 : e; q < e + V && q < own.length; ++q)
        st(a.y + own.base + q, from_acc<T>(gates.ld(a.by_hw.quotient(q)) * own.at(q)));
    }
  }
}

template <class T>
Status launch_stage(const char* name, StageArgs<T> args, const MapShape& map, void* stream) {
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  args.by_hw = FastDiv(static_cast<std::uint32_t>(map.hw));
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(map.n * args.plan.tiles));
  config.block = dim3(kThreads);
  config.shared_bytes = static_cast<std::size_t>(args.plan.bytes);
  config.stream = stream;
  // The means are added up in the same order either way.
  if (has_clusters(stage_planes<T, kWidest>)) config.cluster = args.plan.cluster();
  args.exchange = static_cast<int>(config.cluster) == args.plan.tiles;
  return launch(name, stage_planes<T, kWidest>, config, args);
}

}  // namespace chattn::cuda
