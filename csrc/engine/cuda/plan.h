// The launch planner: how the passes cut a map into blocks. Plain arithmetic on the shape, so that
// the order of every reduction, and with it every bit of the result, is the same on every GPU.
// Those who look into a plan are told by fields(v): v(name, number or plan).
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/macros.h"
#include "engine/map.h"

namespace chattn::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Blocks that keep a large GPU busy (132 multiprocessors, a few blocks each).
constexpr index_t kManyBlocks = 528;
constexpr int kMaxSplits = 32;  // partial sums per plane that a consumer adds up
constexpr int kFewSplits = 8;   // that cost it little

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

// Where part `i` of `parts` < 2^16 equal parts of [0, length) begins: length * i / parts, without
// the 64 bits of that product.
CHATTN_HD int split_at(int length, int i, int parts) {
  const auto n = static_cast<std::uint32_t>(length), k = static_cast<std::uint32_t>(i);
  const auto m = static_cast<std::uint32_t>(parts);
  return static_cast<int>(n / m * k + n % m * k / m);
}

// ---- squeeze and its gradient: per-plane reductions
struct ReducePlan {
  enum Kind {
    tiles,   // NCHW, small planes: a run of planes is staged in shared memory, then reduced
    planes,  // NCHW, large planes: warps or a block read one plane each
    rows,    // channels_last: threads own channels and walk over positions
  } kind = tiles;
  int vec = 1;              // elements per access
  int tile_planes = 1;      // tiles: planes per block
  int lanes = 32;           // tiles: threads that share a plane
  int warps_per_plane = 1;  // planes: 1, or all of the block's
  int cols = 1;             // rows: vectors of channels per block
  int splits = 1;           // partial results per plane
  index_t blocks = 1;

  template <class V>
  void fields(V&& v) const {
    v("kind", kind);
    v("vec", vec);
    v("tile_planes", tile_planes);
    v("warps_per_plane", warps_per_plane);
    v("splits", splits);
  }
};

inline int widest_vector(DType dtype) { return 16 / size_of(dtype); }

// The ways through a map that there are kernels for: vectors of 16 bytes, of one element (widths 2)
// and of two (3); of rows so many elements at most; small planes staged in tiles, of which so many
// positions are taken at once.
struct Ways {
  int widths = 3, row_elements = 8;
  bool tiles = true;
  int unrolled = 4;
};

// Elements per access: 16 bytes, or what the rows of a channels_last map allow. Every map starts on
// a 16-byte boundary.
inline int plan_vector(const MapShape& map, const Ways& ways = {}) {
  const int widest = widest_vector(map.dtype);
  if (!map.channels_last) return widest;
  if (const int most = std::min(widest, ways.row_elements); map.c % most == 0) return most;
  return ways.widths > 2 && widest == 8 && map.c % 2 == 0 ? 2 : 1;
}

// `staged`: numbers that a position leaves in shared memory. `by_sample`: maps are dense in a
// sample only, so that no run of planes goes on into the next one.
inline ReducePlan plan_reduce(const MapShape& map, int staged = 1, bool by_sample = false,
                              const Ways& ways = {}) {
  ReducePlan plan;
  const int widest = widest_vector(map.dtype);
  plan.vec = plan_vector(map, ways);
  if (map.channels_last) {
    plan.kind = ReducePlan::rows;
    const index_t vectors = map.c / plan.vec;
    const auto blocks = [&] { return map.n * ceil_div(vectors, plan.cols); };
    while (plan.cols < 32 && plan.cols < vectors) plan.cols *= 2;
    // Few samples: narrower blocks rather than many parts of a sum, down to 128 bytes of a row.
    while (blocks() * kFewSplits < kManyBlocks && plan.cols * plan.vec * size_of(map.dtype) > 128)
      plan.cols /= 2;
    // As many blocks as are resident at once; each thread with a batch of loads or two.
    const index_t batch = 4 * (kThreads / plan.cols);
    plan.splits = static_cast<int>(std::clamp<index_t>(
        std::min(kManyBlocks / blocks(), ceil_div(map.hw, batch)), 1, kMaxSplits));
    plan.blocks = blocks() * plan.splits;
    return plan;
  }
  // Planes that start anywhere in a 16-byte word, or end within one, would waste sectors.
  constexpr index_t kStagedPlane = 512, kStagedElements = 4096;
  const bool ragged = map.hw % widest != 0;
  if (ways.tiles && map.hw < kStagedPlane && (ragged || map.hw < 256)) {
    plan.kind = ReducePlan::tiles;
    // A multiple of `widest` planes starts on a 16-byte boundary whatever HW is.
    plan.tile_planes = static_cast<int>(std::max<index_t>(
        kStagedElements / staged / map.hw / widest * widest, ragged ? widest : 1));
    plan.lanes = 1;
    while (plan.lanes < 32 && plan.lanes * 2 * plan.tile_planes <= kThreads) plan.lanes *= 2;
    const index_t runs = by_sample ? map.n : 1;
    plan.blocks = runs * ceil_div(map.planes() / runs, plan.tile_planes);
    return plan;
  }
  plan.kind = ReducePlan::planes;
  if (map.planes() >= kManyBlocks * kWarps || map.hw < 1024) {
    plan.blocks = ceil_div(map.planes(), kWarps);
    return plan;
  }
  plan.warps_per_plane = kWarps;
  plan.splits = static_cast<int>(std::clamp<index_t>(
      std::min(ceil_div(kManyBlocks, map.planes()), map.hw / 4096), 1, kMaxSplits));
  plan.blocks = map.planes() * plan.splits;
  return plan;
}

// ---- gate products: (N, K) x (K, r) in tiles, K cut into splits
constexpr int kProductOutputs = 64;      // of a tile
constexpr index_t kProductBlocks = 128;  // that a product is spread over, where it can be
constexpr int kProductSplits = 8;        // at most: the blocks of a cluster
constexpr int kProductUnit = 16;         // splits start at multiples: on 16-byte boundaries

// Summands that a block stages at once: 512 bytes of accumulators.
constexpr int product_depth(std::size_t acc_size) { return static_cast<int>(512 / acc_size); }
// From row to row of those: no two start in one bank.
constexpr int product_stride(std::size_t acc_size) { return product_depth(acc_size) + 4; }

struct ProductPlan {
  int samples = 16;  // of a tile
  index_t sample_tiles = 1, output_tiles = 1;
  int splits = 1;  // blocks that share a tile's sum over K

  index_t tiles() const { return sample_tiles * output_tiles; }
  index_t blocks() const { return tiles() * splits; }
  int counters() const { return splits > 1 ? static_cast<int>(tiles()) : 0; }

  template <class V>
  void fields(V&& v) const {
    v("samples", samples);
    v("sample_tiles", sample_tiles);
    v("output_tiles", output_tiles);
    v("splits", splits);
  }
};

inline ProductPlan plan_product(index_t n, index_t k, index_t r) {
  ProductPlan plan;
  plan.samples = n <= 16 && k % 4 == 0 ? 8 : 16;
  plan.sample_tiles = ceil_div(n, plan.samples);
  plan.output_tiles = ceil_div(r, kProductOutputs);
  // A power of two, as clusters are; each with two units of work or more.
  while (plan.splits < kProductSplits && plan.blocks() * 2 <= kProductBlocks &&
         plan.splits * 2 * 2 * kProductUnit <= k)
    plan.splits *= 2;
  return plan;
}

// ---- gradients of the weights: a tile of (rows x columns) is a sum over the samples
constexpr int kWeightRows = 64, kWeightColumns = 128;

// Of a (rows x columns) matrix.
CHATTN_HD int weight_tiles(int rows, int columns) {
  return ((rows - 1) / kWeightRows + 1) * ((columns - 1) / kWeightColumns + 1);
}

// ---- rescale and its gradient: a tile of gates, then the map under it
constexpr int kApplySamples = 16, kApplyChannels = 64;

struct ApplyPlan {
  int vec = 1;
  int samples = 1;                // per block; they share the block's rows of the weights
  int channels = kApplyChannels;  // per block
  int parts = 1;                  // blocks that share a tile of gates, each with a part of HW
  index_t sample_tiles = 1, channel_tiles = 1;

  template <class V>
  void fields(V&& v) const {
    v("samples", samples);
    v("parts", parts);
    v("channel_tiles", channel_tiles);
  }
};

// `weight_bytes`: what a block tile over all channels reads of the weights. `samples`: per block,
// at least.
inline ApplyPlan plan_apply(const MapShape& map, index_t weight_bytes, int samples = 1,
                            const Ways& ways = {}) {
  ApplyPlan plan;
  plan.samples = samples;
  plan.vec = plan_vector(map, ways);
  // Offsets inside a tile, of NCHW planes or of channels_last rows, stay below 2^31.
  const bool large = map.hw >= index_t{1} << 20;
  if (!map.channels_last && large) plan.channels = 1;
  // Re-reading the weights for every tile of samples may cost 6 % of the pass's traffic.
  while (plan.samples < kApplySamples && plan.samples < map.n && !large &&
         ceil_div(map.n, plan.samples) * weight_bytes * 100 > 6 * 3 * map.bytes())
    plan.samples *= 2;
  plan.sample_tiles = ceil_div(map.n, plan.samples);
  plan.channel_tiles = ceil_div(map.c, plan.channels);
  const index_t tiles = plan.sample_tiles * plan.channel_tiles;
  const index_t tile_elements = plan.samples * std::min<index_t>(plan.channels, map.c) * map.hw;
  plan.parts = static_cast<int>(
      std::clamp<index_t>(std::min(kManyBlocks / 2 / tiles, tile_elements / (8 * kThreads)), 1,
                          map.channels_last ? map.hw : 65535));
  return plan;
}

}  // namespace chattn::cuda
