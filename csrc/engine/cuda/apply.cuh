// The passes that write maps: y = gate*x, and dx = gate*g + dmean (+ dpeak where x is the maximum).
// With M branches: y = sum_m gate_m*x_m, and dx_m = gate_m*g + dmean.
//
// A block owns a tile of (samples x channels) gates, which a Gate computes into shared memory, and
// then streams the part of the map under it: one read of every input, one write. The Gate is all
// that a new block has to bring:
//   Form              numbers per gate, and how many maps they are for: see ApplyForm
//   kShared           accumulators of scratch that prepare() needs
//   prepare(scratch, tiles, place)   fills tiles[q*kTileSize + sample*kApplyChannels + channel]
#pragma once
#include "engine/cuda/fast_div.h"
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Numbers that a gate has: a scale for every input or output, and a shift, and the peak and the
// peak's share. kSlices: the branches may be slices of a larger map. kPrologue: a shift for every
// input, and the ReLU of each scaled and shifted input is added up.
template <int Inputs = 1, int Outputs = 1, bool Shift = false, bool Peak = false,
          bool Slices = false, bool Prologue = false>
struct ApplyForm {
  static_assert(Inputs == 1 || Outputs == 1);
  static constexpr int kInputs = Inputs, kOutputs = Outputs, kScales = Inputs * Outputs;
  static constexpr bool kShift = Shift, kPeak = Peak, kSlices = Slices, kPrologue = Prologue;
  static constexpr int kTiles =
      kScales + (Prologue ? kScales : 0) + (Shift ? 1 : 0) + (Peak ? 2 : 0);
};

// Blocks that must fit on a multiprocessor, for enough loads in flight.
template <class T, int V, class Gate>
constexpr int kApplyBlocks = sizeof(acc_t<T>) == 8 || Gate::Form::kTiles >= 3 || V == 1 ? 2 : 3;
// Loads in flight: iterations that are unrolled; fewer where each element needs many numbers.
template <class Form>
constexpr int kRowsUnrolled = Form::kPrologue ? 2 : 4;
constexpr int kTileSize = kApplySamples * kApplyChannels;

// Which gates a block owns. part == 0: nobody else computes them, so this block also stores them.
struct TilePlace {
  int n0, c0;
  int samples, channels;  // clipped to the map
  int part;
};

struct ApplyShape {
  int n = 0, c = 0, hw = 0, samples = 1, channels = kApplyChannels, parts = 1, channel_tiles = 1;
  FastDiv by_hw, by_slots;  // NCHW: by_slots divides by the vectors of a span

  // Blocks run roughly in order, and the pass before this one ended with the last samples: starting
  // with those finds them in the second-level cache.
  CHATTN_DEVICE TilePlace place() const {
    TilePlace p;
    const int block = static_cast<int>(gridDim.x - 1 - blockIdx.x);
    p.part = block % parts;
    const int tile = block / parts;
    p.c0 = tile % channel_tiles * channels;
    p.n0 = tile / channel_tiles * samples;
    p.samples = min(n - p.n0, samples);
    p.channels = min(c - p.c0, channels);
    return p;
  }
};

template <class T, class Form = ApplyForm<>>
struct ApplyIo {
  const T* in[Form::kInputs];  // x, or g in the backward pass
  const T* x;                  // only where the maximum's positions are needed
  T* out[Form::kOutputs];
  index_t gap = 0;  // of the branches: elements between samples (channels_last: positions)

  // What lies between a dense offset and the branches' own, behind i samples or positions.
  CHATTN_DEVICE index_t skipped_in(index_t i) const {
    return Form::kSlices && Form::kInputs > 1 ? i * gap : 0;
  }
  CHATTN_DEVICE index_t skipped_out(index_t i) const {
    return Form::kSlices && Form::kOutputs > 1 ? i * gap : 0;
  }
};

// One element: output o of the inputs' values, tiles at index t.
template <class Form, class A>
CHATTN_DEVICE A apply_one(const Shared<A>& tiles, int t, int o, const A (&values)[Form::kInputs],
                          A x) {
  if constexpr (Form::kPrologue) {
    A r = A(0);
    CHATTN_UNROLL
    for (int m = 0; m < Form::kInputs; ++m)
      r += nan_max(A(0), tiles.ld(m * kTileSize + t) * values[m] +
                             tiles.ld((Form::kInputs + m) * kTileSize + t));
    return r;
  }
  A r = tiles.ld(o * kTileSize + t) * values[0];
  CHATTN_UNROLL
  for (int m = 1; m < Form::kInputs; ++m) r += tiles.ld(m * kTileSize + t) * values[m];
  if constexpr (Form::kShift) r += tiles.ld(Form::kScales * kTileSize + t);
  if constexpr (Form::kPeak) {
    constexpr int kPeakAt = (Form::kScales + 1) * kTileSize;
    if (x == tiles.ld(kPeakAt + t)) r += tiles.ld(kPeakAt + kTileSize + t);
  }
  return r;
}

// ---- NCHW: a sample's channels of the tile are one contiguous span
template <class T, int V, class Gate>
CHATTN_KERNEL(kThreads, (kApplyBlocks<T, V, Gate>))
apply_spans(ApplyShape shape, ApplyIo<T, typename Gate::Form> io, Gate gate) {
  using A = acc_t<T>;
  using Form = typename Gate::Form;
  const int tid = static_cast<int>(threadIdx.x);
  const TilePlace p = shape.place();
  Shared<A> scratch = shared<A>(0, Gate::kShared);
  Shared<A> tiles = shared<A>(sizeof(A) * Gate::kShared, Gate::Form::kTiles * kTileSize);
  gate.prepare(scratch, tiles, p);
  __syncthreads();

  const int length = p.channels * shape.hw;
  const int slots = static_cast<int>(shape.by_slots.divisor);  // vectors per span, and one to spare
  const int first = split_at(p.samples * slots, p.part, shape.parts);
  const int last = split_at(p.samples * slots, p.part + 1, shape.parts);
  CHATTN_UNROLL_BY(2)
  for (int i = first + tid; i < last; i += kThreads) {
    const int m = shape.by_slots.quotient(i);
    const index_t base = static_cast<index_t>((p.n0 + m) * shape.c + p.c0) * shape.hw;
    const index_t from = base + io.skipped_in(p.n0 + m), to = base + io.skipped_out(p.n0 + m);
    const int skew = static_cast<int>(base % V);
    const int e = (i - m * slots) * V - skew;  // on a 16-byte boundary of the map
    if (e >= 0 && e + V <= length) {
      Vec<T, V> v[Form::kInputs], x, r[Form::kOutputs];
      CHATTN_UNROLL
      for (int q = 0; q < Form::kInputs; ++q) v[q] = load_stream<V>(io.in[q] + from + e);
      if constexpr (Form::kPeak) x = load_stream<V>(io.x + base + e);
      int channel = shape.by_hw.quotient(e), position = e - channel * shape.hw;
      CHATTN_UNROLL
      for (int k = 0; k < V; ++k) {
        A values[Form::kInputs];
        CHATTN_UNROLL
        for (int q = 0; q < Form::kInputs; ++q) values[q] = to_acc(v[q][k]);
        CHATTN_UNROLL
        for (int o = 0; o < Form::kOutputs; ++o)
          r[o][k] = from_acc<T>(apply_one<Form>(tiles, m * kApplyChannels + channel, o, values,
                                                Form::kPeak ? to_acc(x[k]) : A(0)));
        if (++position == shape.hw) {
          position = 0;
          ++channel;
        }
      }
      CHATTN_UNROLL
      for (int o = 0; o < Form::kOutputs; ++o) store_vec(io.out[o] + to + e, r[o]);
    } else {  // the words that the span shares with its neighbours
      for (int i = e < 0 ? 0 : e; i < e + V && i < length; ++i) {
        A values[Form::kInputs];
        CHATTN_UNROLL
        for (int q = 0; q < Form::kInputs; ++q) values[q] = to_acc(ld(io.in[q] + from + i));
        const A x = Form::kPeak ? to_acc(ld(io.x + base + i)) : A(0);
        const int t = m * kApplyChannels + shape.by_hw.quotient(i);
        CHATTN_UNROLL
        for (int o = 0; o < Form::kOutputs; ++o)
          st(io.out[o] + to + i, from_acc<T>(apply_one<Form>(tiles, t, o, values, x)));
      }
    }
  }
}

// ---- channels_last: a position's channels of the tile are one short row
template <class T, int V, class Gate>
CHATTN_KERNEL(kThreads, (kApplyBlocks<T, V, Gate>))
apply_rows(ApplyShape shape, ApplyIo<T, typename Gate::Form> io, Gate gate) {
  using A = acc_t<T>;
  using Form = typename Gate::Form;
  constexpr int kCols = kApplyChannels / V, kRows = kThreads / kCols;
  const int tid = static_cast<int>(threadIdx.x);
  const TilePlace p = shape.place();
  Shared<A> scratch = shared<A>(0, Gate::kShared);
  Shared<A> tiles = shared<A>(sizeof(A) * Gate::kShared, Gate::Form::kTiles * kTileSize);
  gate.prepare(scratch, tiles, p);
  __syncthreads();

  const int channel = tid % kCols * V;
  if (channel >= p.channels) return;  // C is a multiple of V
  const int begin = split_at(shape.hw, p.part, shape.parts);
  const int end = split_at(shape.hw, p.part + 1, shape.parts);
  for (int m = 0; m < p.samples; ++m) {
    const int t = m * kApplyChannels + channel;
    CHATTN_UNROLL_BY(kRowsUnrolled<Form>)
    for (int i = begin + tid / kCols; i < end; i += kRows) {
      const index_t row = static_cast<index_t>(p.n0 + m) * shape.hw + i;
      const index_t offset = row * shape.c + p.c0 + channel;
      Vec<T, V> v[Form::kInputs], x, r[Form::kOutputs];
      CHATTN_UNROLL
      for (int q = 0; q < Form::kInputs; ++q)
        v[q] = load_stream<V>(io.in[q] + offset + io.skipped_in(row));
      if constexpr (Form::kPeak) x = load_stream<V>(io.x + offset);
      CHATTN_UNROLL
      for (int k = 0; k < V; ++k) {
        A values[Form::kInputs];
        CHATTN_UNROLL
        for (int q = 0; q < Form::kInputs; ++q) values[q] = to_acc(v[q][k]);
        CHATTN_UNROLL
        for (int o = 0; o < Form::kOutputs; ++o)
          r[o][k] = from_acc<T>(
              apply_one<Form>(tiles, t + k, o, values, Form::kPeak ? to_acc(x[k]) : A(0)));
      }
      CHATTN_UNROLL
      for (int o = 0; o < Form::kOutputs; ++o)
        store_vec(io.out[o] + offset + io.skipped_out(row), r[o]);
    }
  }
}

// ---- launch
template <class T, class Gate>
Status launch_apply(const char* name, const ApplyPlan& plan, const MapShape& map,
                    const ApplyIo<T, typename Gate::Form>& io, const Gate& gate, void* stream) {
  using A = acc_t<T>;
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  ApplyShape shape;
  shape.n = static_cast<int>(map.n);
  shape.c = static_cast<int>(map.c);
  shape.hw = static_cast<int>(map.hw);
  shape.samples = plan.samples;
  shape.channels = plan.channels;
  shape.parts = plan.parts;
  shape.channel_tiles = static_cast<int>(plan.channel_tiles);
  shape.by_hw = FastDiv(static_cast<std::uint32_t>(map.hw));
  shape.by_slots = FastDiv(
      static_cast<std::uint32_t>(std::min<index_t>(plan.channels, map.c) * map.hw / plan.vec + 2));
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.sample_tiles * plan.channel_tiles * plan.parts));
  config.block = dim3(kThreads);
  config.shared_bytes = sizeof(A) * (Gate::kShared + Gate::Form::kTiles * kTileSize);
  config.stream = stream;
  if (!map.channels_last)
    return launch(name, apply_spans<T, kWidest, Gate>, config, shape, io, gate);
  if (plan.vec == kWidest)
    return launch(name, apply_rows<T, kWidest, Gate>, config, shape, io, gate);
  if constexpr (kWidest == 8) {
    if (plan.vec == 2) return launch(name, apply_rows<T, 2, Gate>, config, shape, io, gate);
  }
  return launch(name, apply_rows<T, 1, Gate>, config, shape, io, gate);
}

}  // namespace chattn::cuda
