// What a fold reads of a map, and a thread's way over it.
#pragma once
#include "engine/cuda/arrival.cuh"
#include "engine/cuda/elements.cuh"
#include "engine/cuda/mask.cuh"
//
#include "common/device.cuh"

namespace chattn::cuda {

// Places whose inputs a thread asks for before it uses the first of them, for 3 to 6 loads in
// flight within the registers of as many blocks. Unrolling a loop whose count only the launch knows
// leaves one place in flight: each load stays behind the exit test before it.
template <class Op>
constexpr int kBatch = Op::kInputs == 1   ? 4
                       : Op::kInputs == 2 ? 2
                                          : 1;
template <int V, class Op>
constexpr int kTilesBatch = Op::kInputs > 1 ? 1
                            : V > 4         ? 2
                                            : 4;
template <class Op>
constexpr int kRowsBatch = Op::kInputs == 3 ? 2 : kBatch<Op>;

// A thread's way over a map: elements to its first place, and from each place to the next; and
// what slices skip on top of that.
struct Walk {
  index_t first, step;
  index_t skipped = 0, skipped_step = 0;
};

template <class T, class Op>
struct ReduceIo {
  using A = acc_t<T>;
  static constexpr bool kSlices = Op::kBranches >= 0;
  const T* in[Op::kInputs];
  A* out[Op::kOutputs];
  const A* reference;  // what the Op's References are loaded from, or null
  Arrivals arrivals;   // cleared for the next launch
  index_t gap = 0;     // of the branches: elements between samples (channels_last: positions)
  index_t sample_planes = 1;  // C, where an Op asks for it
  Op op{};

  // What a thread holds of the maps at one place.
  template <int V>
  struct Place {
    Vec<T, V> v[Op::kInputs];
    unsigned mask;  // read: the bits of the place's byte, from the place on
  };

  CHATTN_DEVICE static constexpr bool is_slice(int m) { return kSlices && m >= Op::kBranches; }
  // Elements that the branches' samples (channels_last: positions) before the i-th skip.
  CHATTN_DEVICE index_t skipped(index_t i) const { return kSlices ? i * gap : 0; }

  // What is added to a pointer to an input; null ones stay null.
  CHATTN_DEVICE index_t behind(int m, index_t offset) const {
    return Op::kOptional && in[m] == nullptr ? 0 : offset;
  }
  template <int V>
  CHATTN_DEVICE Vec<T, V> load_from(int m, const T* p) const {
    if (Op::kOptional && in[m] == nullptr) return Vec<T, V>{};
    return load_vec<V>(p);
  }

  template <int V, class Use>
  CHATTN_DEVICE void use_place(int i, const Place<V>& place, Use use) const {
    A staged[V][Op::kStaged];
    CHATTN_UNROLL
    for (int k = 0; k < V; ++k) {
      A values[Op::kInputs];
      CHATTN_UNROLL
      for (int m = 0; m < Op::kInputs; ++m) values[m] = to_acc(place.v[m][k]);
      if constexpr (Op::kMask == Mask::read)
        op.stage(values, (place.mask >> k & 1) != 0, staged[k]);
      else
        op.stage(values, staged[k]);
    }
    use(i, staged);
  }
  template <int V>
  CHATTN_DEVICE void load(index_t offset, index_t skip, Place<V>& place) const {
    CHATTN_UNROLL
    for (int m = 0; m < Op::kInputs; ++m)
      place.v[m] = load_from<V>(m, in[m] + behind(m, offset + (is_slice(m) ? skip : 0)));
    if constexpr (Op::kMask == Mask::read) place.mask = load_bits<V>(op.mask, offset);
  }
  // use(i, staged) for i = 0, step, ... below count: the places of a walk, in their order.
  template <int V, int Batch, class Use>
  CHATTN_DEVICE void walk(const Walk& w, int count, int step, Use use) const {
    if constexpr (Batch == 1) {
      index_t at = w.first, skipped = w.skipped;
      CHATTN_UNROLL_BY(1)
      for (int i = 0; i < count; i += step, at += w.step, skipped += w.skipped_step) {
        Place<V> place;
        load<V>(at, skipped, place);
        use_place<V>(i, place, use);
      }
    } else {
      [[maybe_unused]] index_t mask_at = w.first;
      const T* at[Op::kInputs];
      CHATTN_UNROLL
      for (int m = 0; m < Op::kInputs; ++m)
        at[m] = in[m] + behind(m, w.first + (is_slice(m) ? w.skipped : 0));
      int i = 0;
      // No test before the loop: the first place of a batch needs one as the others do. Without,
      // the compiler uses it while it has yet to ask for the others.
      CHATTN_UNROLL_BY(1)
      do {
        Place<V> places[Batch];
        CHATTN_UNROLL
        for (int b = 0; b < Batch; ++b) {
          if (i + b * step >= count) continue;
          CHATTN_UNROLL
          for (int m = 0; m < Op::kInputs; ++m)
            places[b].v[m] = load_from<V>(
                m, at[m] + behind(m, b * (w.step + (is_slice(m) ? w.skipped_step : 0))));
          if constexpr (Op::kMask == Mask::read)
            places[b].mask = load_bits<V>(op.mask, mask_at + b * w.step);
        }
        CHATTN_UNROLL
        for (int m = 0; m < Op::kInputs; ++m)
          at[m] += behind(m, Batch * (w.step + (is_slice(m) ? w.skipped_step : 0)));
        mask_at += Batch * w.step;
        CHATTN_UNROLL
        for (int b = 0; b < Batch; ++b) {
          if (i + b * step < count) use_place<V>(i + b * step, places[b], use);
        }
        i += Batch * step;
      } while (i < count);
    }
  }
  CHATTN_DEVICE index_t sample_of(index_t plane) const {
    return static_cast<unsigned>(plane) / static_cast<unsigned>(sample_planes);
  }
  CHATTN_DEVICE typename Op::Reference of_plane(index_t plane) const {
    const index_t channel = plane - sample_of(plane) * sample_planes;
    return reference_of(plane, channel, sample_planes);
  }
  CHATTN_DEVICE typename Op::Reference reference_of(index_t plane, index_t channel,
                                                    index_t c_count) const {
    if constexpr (requires { op.reference_of(plane, channel, c_count); })
      return op.reference_of(plane, channel, c_count);
    else
      return Op::Reference::load(reference, plane, channel, c_count);
  }
};

}  // namespace chattn::cuda
