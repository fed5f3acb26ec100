// The passes that write maps: y = gate*x, and dx = gate*g + dmean.
// With M branches: y = sum_m gate_m*x_m, and dx_m = gate_m*g + dmean.
//
// A block owns a tile of (samples x channels) gates, which a Gate computes into shared memory, and
// then streams the part of the map under it: one read of every input, one write. The Gate is all
// that a new block has to bring:
//   Element           what becomes of a position's values: an emit of elements.cuh
//   kShared           accumulators of scratch that prepare() needs
//   prepare(scratch, tiles, place)   fills tiles[q*kTileSize + sample*kApplyChannels + channel]
// and may bring
//   beside            other work: the launch's first `blocks` blocks call its run(block) instead
#pragma once
#include "engine/cuda/elements.cuh"
#include "engine/cuda/fast_div.h"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/mask.cuh"
#include "engine/cuda/plan.h"
//
#include "common/device.cuh"

namespace chattn::cuda {

template <class Gate>
constexpr bool kHasBeside = requires(const Gate& gate) { gate.beside; };

// Blocks that must fit on a multiprocessor, for enough loads in flight; fewer where other work
// lies beside the gate's, for its registers.
template <class T, int V, class Gate>
constexpr int kApplyBlocks =
    sizeof(acc_t<T>) == 8 || Gate::Element::kNumbers >= 3 || V == 1 || kHasBeside<Gate> ? 2 : 3;
// Neighbouring threads that write a byte of a mask together.
template <int V, class Element>
constexpr int kSharing = Element::kMask == Mask::written && V < 8 ? 8 / V : 1;
constexpr int kTileSize = kApplySamples * kApplyChannels;

// Which gates a block owns. part == 0: nobody else computes them, so this block also stores them.
struct TilePlace {
  int n0, c0;
  int samples, channels;  // clipped to the map
  int part;
};

// Calls body(sample, channel) for the gates of a block's tile.
template <class Body>
CHATTN_DEVICE void for_gates(const TilePlace& p, Body&& body) {
  for (int t = static_cast<int>(threadIdx.x); t < p.samples * kApplyChannels; t += kThreads)
    if (t % kApplyChannels < p.channels) body(t / kApplyChannels, t % kApplyChannels);
}

struct ApplyShape {
  int n = 0, c = 0, hw = 0, samples = 1, channels = kApplyChannels, parts = 1;
  index_t sample = 0;  // elements of one
  FastDiv by_parts, by_channel_tiles;
  FastDiv by_hw, by_words;  // by_words: NCHW, vectors of a span

  // Where a part of [0, length) begins: length * part / parts, in units.
  template <int Unit = 1>
  CHATTN_DEVICE int begin(int length, int part) const {
    const int units = Unit == 1 ? length : (length + Unit - 1) / Unit;
    const int each = by_parts.quotient(units);
    const int unit = each * part + by_parts.quotient((units - each * parts) * part);
    return Unit == 1 ? unit : min(unit * Unit, length);
  }

  // Blocks run roughly in order, and the pass before this one ended with the last samples: starting
  // with those finds them in the second-level cache.
  CHATTN_DEVICE TilePlace place() const {
    TilePlace p;
    const int block = static_cast<int>(gridDim.x - 1 - blockIdx.x);
    const int tile = by_parts.quotient(block), row = by_channel_tiles.quotient(tile);
    p.part = block - tile * parts;
    p.c0 = (tile - row * static_cast<int>(by_channel_tiles.divisor)) * channels;
    p.n0 = row * samples;
    p.samples = min(n - p.n0, samples);
    p.channels = min(c - p.c0, channels);
    return p;
  }
};

template <class T, class Element>
struct ApplyIo {
  const T* in[Element::kInputs];  // x, or g in the backward pass
  T* out[Element::kOutputs];
  index_t gap = 0;  // of the branches: elements between samples (channels_last: positions)
  Element element{};

  // What lies between a dense offset and the branches' own, behind i samples or positions.
  CHATTN_DEVICE index_t skipped_in(index_t i) const { return Element::kSliceIn ? i * gap : 0; }
  CHATTN_DEVICE index_t skipped_out(index_t i) const { return Element::kSliceOut ? i * gap : 0; }
};

// What a thread holds of the maps at one place: V elements of every input. They stay the words that
// were loaded until they are used; as elements, they would take a register each.
template <class T, int V, class Element>
struct ApplyVectors {
  using A = acc_t<T>;
  static constexpr int kBytes = V * static_cast<int>(sizeof(T));
  using Word = std::conditional_t<kBytes % 4 == 0, std::uint32_t, std::uint16_t>;
  static constexpr int kWords = kBytes / static_cast<int>(sizeof(Word));
  using Words = Vec<Word, kWords>;
  Words in[Element::kInputs];
  unsigned mask;  // read: the bits of the place's byte, from the place on

  // `dense`: the place in a map that is no slice of another; `skipped`: what the branches skip.
  CHATTN_DEVICE void load(const ApplyIo<T, Element>& io, index_t dense, index_t skipped) {
    CHATTN_UNROLL
    for (int q = 0; q < Element::kInputs; ++q) {
      if (Element::kOptional && io.in[q] == nullptr)
        in[q] = Words{};
      else
        in[q] = load_words(io.in[q] + dense + skipped);
    }
    if constexpr (Element::kMask == Mask::read) mask = load_bits<V>(io.element.mask, dense);
  }
  CHATTN_DEVICE static Words load_words(const T* p) {
    return load_stream<kWords>(reinterpret_cast<const Word*>(p));
  }
  CHATTN_DEVICE static Vec<T, V> elements(Words words) {
    // Else the compiler converts such a word where it was loaded, and waits for it there.
    if constexpr (sizeof(Word) == 2) words[0] = static_cast<Word>(opaque(words[0]));
    return bit_cast<Vec<T, V>>(words);
  }
  // gate_of(k, gate): the numbers of element k's gate; asked in the order of the elements.
  template <class GateOf>
  CHATTN_DEVICE void apply(const Element& element, Words (&out)[Element::kOutputs],
                           GateOf&& gate_of) {
    Vec<T, V> v[Element::kInputs], r[Element::kOutputs];
    CHATTN_UNROLL
    for (int q = 0; q < Element::kInputs; ++q) v[q] = elements(in[q]);
    if constexpr (Element::kMask == Mask::written) mask = 0;
    const auto each = [&](const auto& chosen) {
      CHATTN_UNROLL
      for (int k = 0; k < V; ++k) {
        A gate[Element::kNumbers], values[Element::kInputs], results[Element::kOutputs];
        gate_of(k, gate);
        CHATTN_UNROLL
        for (int q = 0; q < Element::kInputs; ++q) values[q] = to_acc(v[q][k]);
        if constexpr (Element::kMask == Mask::none) {
          CHATTN_UNROLL
          for (int o = 0; o < Element::kOutputs; ++o) results[o] = chosen.at(gate, o, values);
        } else {
          bool bit = Element::kMask == Mask::read && (mask >> k & 1) != 0;
          chosen.at(gate, values, bit, results);
          if constexpr (Element::kMask == Mask::written) mask |= (bit ? 1u : 0u) << k;
        }
        CHATTN_UNROLL
        for (int o = 0; o < Element::kOutputs; ++o) r[o][k] = from_acc<T>(results[o]);
      }
    };
    if constexpr (requires { element.choose(each); })
      element.choose(each);
    else
      each(element);
    CHATTN_UNROLL
    for (int o = 0; o < Element::kOutputs; ++o) out[o] = bit_cast<Words>(r[o]);
  }
  // `dense`, `skipped`: as of load().
  CHATTN_DEVICE void store(const ApplyIo<T, Element>& io, index_t dense, index_t skipped,
                           const Words (&out)[Element::kOutputs]) const {
    CHATTN_UNROLL
    for (int o = 0; o < Element::kOutputs; ++o) {
      if (Element::kOptional && io.out[o] == nullptr) continue;
      store_vec(reinterpret_cast<Word*>(io.out[o] + dense + skipped), out[o]);
    }
    if constexpr (Element::kMask == Mask::written && kBytes == 16)
      store_bits<V>(io.element.mask, dense, mask);
  }
};

// The gate of one channel of the tile.
template <class Element, class A>
CHATTN_DEVICE void load_gate(const Shared<A>& tiles, int t, A (&gate)[Element::kNumbers]) {
  CHATTN_UNROLL
  for (int q = 0; q < Element::kNumbers; ++q) gate[q] = tiles.ld(q * kTileSize + t);
}

// Whether this block is one of those that a gate has brought along, and has done its work.
template <class Gate>
CHATTN_DEVICE bool ran_beside(const Gate& gate) {
  if constexpr (kHasBeside<Gate>) {
    if (static_cast<int>(blockIdx.x) < gate.beside.blocks) {
      gate.beside.run(static_cast<int>(blockIdx.x));
      return true;
    }
  }
  return false;
}

// ---- NCHW: a sample's channels of the tile are one contiguous span
// Sample m's: whole words of 16 bytes of the map, and fewer than V elements before and behind them.
template <int V>
struct Span {
  index_t base;  // of its first element
  int head;      // elements before the first whole word
  CHATTN_DEVICE Span(const ApplyShape& shape, const TilePlace& p, int m)
      : base((p.n0 + m) * shape.sample + static_cast<index_t>(p.c0) * shape.hw),
        head(static_cast<int>(-base & (V - 1))) {}
};

template <class T, int V, class Gate>
CHATTN_KERNEL(kThreads, (kApplyBlocks<T, V, Gate>))
apply_spans(ApplyShape shape, ApplyIo<T, typename Gate::Element> io, Gate gate) {
  using A = acc_t<T>;
  using Element = typename Gate::Element;
  constexpr int kBatch = Element::kBatch, kShare = kSharing<V, Element>;
  if (ran_beside(gate)) return;
  const TilePlace p = shape.place();
  Shared<A> scratch = shared<A>(0, Gate::kShared);
  Shared<A> tiles = shared<A>(sizeof(A) * Gate::kShared, Element::kNumbers * kTileSize);
  const int length = p.channels * shape.hw;
  const int words = static_cast<int>(shape.by_words.divisor);  // of a span, at most
  const int last = shape.template begin<kShare>(p.samples * words, p.part + 1);

  // body(u, m, base, e) for the whole words of a batch: at element e of sample m's span.
  ApplyVectors<T, V, Element> v[kBatch];
  const auto batch = [&](int i, auto&& body) {
    CHATTN_UNROLL
    for (int u = 0; u < kBatch; ++u) {
      const int at = i + u * kThreads, m = shape.by_words.quotient(at);
      const Span<V> span(shape, p, m);
      const int e = span.head + (at - m * words) * V;
      if (at < last && e + V <= length) body(u, m, span.base, e);
    }
  };
  const auto load = [&](int i) {
    batch(i, [&](int u, int m, index_t base, int e) {
      v[u].load(io, base + e, io.skipped_in(p.n0 + m));
    });
  };
  const auto apply = [&](int i) {
    batch(i, [&](int u, int m, index_t base, int e) {
      const int channel = shape.by_hw.quotient(e);
      int t = m * kApplyChannels + channel, left = (channel + 1) * shape.hw - e;
      typename ApplyVectors<T, V, Element>::Words out[Element::kOutputs];
      if (left >= V) {  // all in one plane
        A same[Element::kNumbers];
        load_gate<Element>(tiles, t, same);
        v[u].apply(io.element, out, [&](int, A(&of)[Element::kNumbers]) {
          CHATTN_UNROLL
          for (int q = 0; q < Element::kNumbers; ++q) of[q] = same[q];
        });
      } else {
        v[u].apply(io.element, out, [&](int, A(&of)[Element::kNumbers]) {
          load_gate<Element>(tiles, t, of);
          if (--left == 0) {
            left = shape.hw;
            ++t;
          }
        });
      }
      // One store for both cases, lest a sector that lies half in each be written twice.
      v[u].store(io, base + e, io.skipped_out(p.n0 + m), out);
    });
  };

  // body(m, base, e) for the element before or behind a span's words that is this thread's, if any.
  ApplyVectors<T, 1, Element> end{};
  const auto at_end = [&](unsigned thread, auto&& body) {
    static_assert(2 * V * kApplySamples <= kThreads);
    const int m = static_cast<int>(thread / (2 * V)), side = static_cast<int>(thread % (2 * V));
    const Span<V> span(shape, p, m);
    const int behind = span.head + (length - span.head) / V * V;
    const int e = side < V ? side : behind + side - V, stop = side < V ? span.head : length;
    if (p.part == 0 && m < p.samples && e < min(stop, length)) body(m, span.base, e);
  };

  // The map is on its way while the gates are computed.
  int i = shape.template begin<kShare>(p.samples * words, p.part) + static_cast<int>(threadIdx.x);
  load(i);
  at_end(threadIdx.x,
         [&](int m, index_t base, int e) { end.load(io, base + e, io.skipped_in(p.n0 + m)); });
  gate.prepare(scratch, tiles, p);
  __syncthreads();

  at_end(opaque(threadIdx.x), [&](int m, index_t base, int e) {
    typename ApplyVectors<T, 1, Element>::Words out[Element::kOutputs];
    end.apply(io.element, out, [&](int, A(&of)[Element::kNumbers]) {
      load_gate<Element>(tiles, m * kApplyChannels + shape.by_hw.quotient(e), of);
    });
    end.store(io, base + e, io.skipped_out(p.n0 + m), out);
  });
  while (true) {
    apply(i);
    i += kBatch * kThreads;
    if (i >= last) return;
    load(i);
  }
}

// ---- channels_last: a position's channels of the tile are one short row
template <class T, int V, class Gate>
CHATTN_KERNEL(kThreads, (kApplyBlocks<T, V, Gate>))
apply_rows(ApplyShape shape, ApplyIo<T, typename Gate::Element> io, Gate gate) {
  using A = acc_t<T>;
  using Element = typename Gate::Element;
  constexpr int kCols = kApplyChannels / V, kRows = kThreads / kCols;
  constexpr int kBatch = V == 1 && sizeof(A) == 8 && kHasBeside<Gate> ? 2 : Element::kBatch;
  constexpr int kWord = V * sizeof(A) <= 16 ? V : 16 / static_cast<int>(sizeof(A));
  if (ran_beside(gate)) return;
  const unsigned tid = threadIdx.x;
  const TilePlace p = shape.place();
  Shared<A> scratch = shared<A>(0, Gate::kShared);
  Shared<A> tiles = shared<A>(sizeof(A) * Gate::kShared, Element::kNumbers * kTileSize);

  // The samples' rows are one run; this thread takes every kRows-th of the block's part.
  const int channel = static_cast<int>(tid % kCols) * V, rows = p.samples * shape.hw;
  const int last = channel < p.channels ? shape.begin(rows, p.part + 1) : 0;
  const index_t first_row = static_cast<index_t>(p.n0) * shape.hw;
  const index_t first = first_row * shape.c + p.c0 + channel;
  ApplyVectors<T, V, Element> v[kBatch];
  const auto batch = [&](int i, auto&& body) {
    CHATTN_UNROLL
    for (int u = 0; u < kBatch; ++u) {
      const int at = i + u * kRows;
      if (at < last)
        body(u, at, first_row + at,
             first +
                 static_cast<index_t>(static_cast<unsigned>(at)) * static_cast<unsigned>(shape.c));
    }
  };
  const auto load = [&](int i) {
    batch(i, [&](int u, int, index_t row, index_t offset) {
      v[u].load(io, offset, io.skipped_in(row));
    });
  };
  const auto apply = [&](int i) {
    batch(i, [&](int u, int at, index_t row, index_t offset) {
      const int t = shape.by_hw.quotient(at) * kApplyChannels + channel;
      Vec<A, kWord> word[Element::kNumbers];
      typename ApplyVectors<T, V, Element>::Words out[Element::kOutputs];
      v[u].apply(io.element, out, [&](int k, A(&of)[Element::kNumbers]) {
        CHATTN_UNROLL
        for (int q = 0; q < Element::kNumbers; ++q) {
          if (k % kWord == 0) word[q] = tiles.template ldv<kWord>(q * kTileSize + t + k);
          of[q] = word[q][k % kWord];
        }
      });
      v[u].store(io, offset, io.skipped_out(row), out);
    });
  };

  // The map is on its way while the gates are computed.
  int i = shape.begin(rows, p.part) + static_cast<int>(tid / kCols);
  load(i);
  gate.prepare(scratch, tiles, p);
  __syncthreads();
  while (true) {
    apply(i);
    i += kBatch * kRows;
    if (i >= last) return;
    load(i);
  }
}

// ---- launch
template <class T, class Gate>
Status launch_apply(const char* name, const ApplyPlan& plan, const MapShape& map,
                    const ApplyIo<T, typename Gate::Element>& io, const Gate& gate, void* stream) {
  using A = acc_t<T>;
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  ApplyShape shape;
  shape.n = static_cast<int>(map.n);
  shape.c = static_cast<int>(map.c);
  shape.hw = static_cast<int>(map.hw);
  shape.sample = map.c * map.hw;
  shape.samples = plan.samples;
  shape.channels = plan.channels;
  shape.parts = plan.parts;
  shape.by_parts = FastDiv(static_cast<std::uint32_t>(plan.parts));
  shape.by_channel_tiles = FastDiv(static_cast<std::uint32_t>(plan.channel_tiles));
  shape.by_hw = FastDiv(static_cast<std::uint32_t>(map.hw));
  const index_t words = std::min<index_t>(plan.channels, map.c) * map.hw / plan.vec;
  shape.by_words = FastDiv(static_cast<std::uint32_t>(std::max<index_t>(words, 1)));
  index_t blocks = plan.sample_tiles * plan.channel_tiles * plan.parts;
  std::size_t shared = sizeof(A) * (Gate::kShared + Gate::Element::kNumbers * kTileSize);
  if constexpr (kHasBeside<Gate>) {
    blocks += gate.beside.blocks;
    shared = std::max(shared, sizeof(A) * gate.beside.kShared);
  }
  const LaunchConfig config = blocks_of_threads(blocks, stream, shared);
  if (!map.channels_last)
    return launch(name, apply_spans<T, kWidest, Gate>, config, shape, io, gate);
  if (plan.vec == kWidest)
    return launch(name, apply_rows<T, kWidest, Gate>, config, shape, io, gate);
  constexpr int kWidths = Gate::Element::kWays.widths;
  if constexpr (kWidest == 8 && kWidths > 2) {
    if (plan.vec == 2) return launch(name, apply_rows<T, 2, Gate>, config, shape, io, gate);
  }
  if constexpr (kWidths > 1) return launch(name, apply_rows<T, 1, Gate>, config, shape, io, gate);
  return Status::error("%s: no kernel for vectors of %d", name, plan.vec);
}

}  // namespace chattn::cuda
