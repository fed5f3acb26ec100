// The CPU kernels of one instruction set, as tables of functions: passes over the map and the small
// matrix products of the gates. A block is composed from them in blocks/; only kernels.cpp is
// compiled once per instruction set.
#pragma once
#include "common/activation.h"
#include "common/types.h"
#include "engine/map.h"
#include "engine/tail.h"

namespace chattn::cpu {

// What one call of a pass covers: channels [c0, c1) and positions [p0, p1) of sample n. Only
// channels_last maps are divided by positions, and only where a multiple of `span` ends: sums are
// made of the sums of spans, whoever computes them, so that the number of threads cannot change
// them.
struct Region {
  index_t n, c0, c1, p0, p1, span;
};

// Rows of at most so many channels are never divided: several positions may be taken as one row.
constexpr index_t kWholeRow = 256;

// Arrays over channels are in the accumulation type and indexed by the channel itself (so they
// start at channel 0 of the sample). With M branches, `gate` and `dot` have M rows of C. `squeeze`
// and `rescale` read branches through their prologue, if any.
struct PassKernels {
  // sum[c] = sum_hw sum_m x_m.
  void (*squeeze)(const MapShape&, const Branches& x, const Region&, void* sum);
  // dot[m][c] = sum_hw g*x_m.
  void (*dot)(const MapShape&, const void* g, const Branches& x, const Region&, void* dot);
  // y = sum_m gate[m][c]*x_m. `stream`: write past the caches.
  void (*rescale)(const MapShape&, const Branches& x, const Region&, const void* gate, void* y,
                  bool stream);
  // dx_m = gate[m][c]*g + dmean[c].
  void (*gradient)(const MapShape&, const void* g, const Region&, const void* gate,
                   const void* dmean, const MutableBranches& dx, bool stream);
  // sums[0][c] = sum_hw (x - shift[c]), sums[1][c] = sum_hw (x - shift[c])^2.
  void (*moments)(const MapShape&, const void* x, const Region&, const void* shift, void* sums);
  // Those of engine/tail.h. Null: `mask` and either gradient, if they are not wanted.
  void (*tail)(const MapShape&, const TailMaps&, const TailFunctions&, const TailNumbers&,
               const Region&, void* y, void* mask, bool stream);
  void (*tail_sums)(const MapShape&, const TailMaps&, const TailFunctions&, const TailNumbers&,
                    const Region&, void* sums);
  void (*tail_gradient)(const MapShape&, const TailMaps&, const TailFunctions&, const TailNumbers&,
                        const Region&, void* dx, void* dresidual, bool stream);
};

// Products of small row-major matrices, and activations. `w` has the weights' type, everything else
// is accumulators.
struct MatrixKernels {
  // out[r][i] = sum_k a[r][k] * w[i][k] + bias[i]   for i in [i0, i1); w: (., k), bias may be null
  void (*rows)(const void* a, const void* w, const void* bias, void* out, index_t rows,
               index_t out_stride, index_t i0, index_t i1, index_t k);
  // out[r][k] = sum_i a[r][i] * w[i][k]             for k in [k0, k1); w: (i_count, width)
  void (*columns)(const void* a, const void* w, void* out, index_t rows, index_t i_count,
                  index_t width, index_t k0, index_t k1);
  // out[i][k] = sum_r a[r][i] * b[r][k] in the weights' type, for i in [i0, i1);
  // bias[i] = sum_r a[r][i]; either may be null
  void (*outer)(const void* a, const void* b, void* out, void* bias, index_t rows, index_t i_count,
                index_t i0, index_t i1, index_t k);
  // values[i] = f(values[i])
  void (*activate)(Act f, double param, void* values, index_t count);
  // values[i] = f(z[i]), grad[i] *= f'(z[i])
  void (*activate_backward)(Act f, double param, const void* z, void* values, void* grad,
                            index_t count);
  // grad[i] = (grad[i] + dgate[i]) * f' where f is gate[i]; dgate may be null
  void (*gate_backward)(Act f, const void* gate, const void* dgate, void* grad, index_t count);
  // For the first `count` columns of `rows` rows, `stride` apart: gate = softmax of a column.
  void (*softmax)(const void* logits, void* gate, index_t rows, index_t stride, index_t count);
  // grad = the gradient before the softmax, from the one behind it.
  void (*softmax_backward)(const void* gate, void* grad, index_t rows, index_t stride,
                           index_t count);
};

struct Kernels {
  const char* isa;
  const PassKernels* passes;      // by map type
  const MatrixKernels* matrices;  // by weight type, accumulators in acc_t of the map type
  const PassKernels& pass(DType map) const { return passes[static_cast<int>(map)]; }
  const MatrixKernels& matrix(DType weight) const { return matrices[static_cast<int>(weight)]; }
};

// The best set that this processor runs; CHATTN_CPU_ISA=baseline|avx2|avx512 lowers it (for tests).
const Kernels& kernels();

}  // namespace chattn::cpu
