// Compiled once per instruction set, with -DCHATTN_ISA=baseline|avx2|avx512 and its machine flags.
#include "engine/cpu/kernels.h"

#include "engine/cpu/matrices.h"
#include "engine/cpu/passes.h"
#include "engine/cpu/pointwise.h"
#include "engine/cpu/tail_passes.h"

#define CHATTN_STRING_(name) #name
#define CHATTN_STRING(name) CHATTN_STRING_(name)

namespace chattn::CHATTN_ISA {
namespace {

using cpu::Region;

// body(a constant equal to the number of branches)
template <int M = 1, class Body>
void with_count(int count, Body&& body) {
  if (count == M) {
    body(std::integral_constant<int, M>{});
  } else if constexpr (M < kMaxBranches) {
    with_count<M + 1>(count, body);
  }
}

// body(a constant: the branches' prologue)
template <class Body>
void with_prologue(const Branches& x, Body&& body) {
  if (!x.prologue) return body(std::integral_constant<With, With::nothing>{});
  if (x.act == Act::relu) return body(std::integral_constant<With, With::relu>{});
  body(std::integral_constant<With, With::activation>{});
}

// body(how the inner activation is known, how the outer): the usual pairs at compile time, fewer
// in float64, and on small vectors in 16 bits, which nobody trains in there.
template <class T, class Body>
void with_functions(const TailFunctions& f, bool masked, Body&& body) {
  const auto pair = [&]<Known inner, Known act>() {
    body(std::integral_constant<Known, inner>{}, std::integral_constant<Known, act>{});
  };
  const auto known = [&]<Known inner, Known act>() {
    const bool there = f.inner == act_of(inner) && f.act == act_of(act);
    if (there) pair.template operator()<inner, act>();
    return there;
  };
  constexpr Known none = Known::identity;
  const bool plain = f.inner == Act::identity;
  if (masked) {
    if (plain) return pair.template operator()<none, Known::masked>();
    return pair.template operator()<Known::other, Known::masked>();
  }
  if (known.template operator()<none, none>() || known.template operator()<none, Known::relu>())
    return;
  if constexpr (std::is_same_v<T, float> || (sizeof(T) == 2 && kVectorBytes > 16)) {
    if (known.template operator()<none, Known::silu>() ||
        known.template operator()<none, Known::hard_swish>() ||
        known.template operator()<Known::relu, none>() ||
        known.template operator()<Known::silu, none>() ||
        known.template operator()<Known::hard_swish, none>() ||
        known.template operator()<Known::relu, Known::relu>())
      return;
  }
  if (plain) return pair.template operator()<none, Known::other>();
  pair.template operator()<Known::other, Known::other>();
}

// Typed functions behind the untyped tables.
template <class T>
struct Passes {
  using A = acc_t<T>;
  static const T* in(const void* p) { return static_cast<const T*>(p); }
  static const A* acc(const void* p) { return static_cast<const A*>(p); }
  static A* acc(void* p) { return static_cast<A*>(p); }

  static void squeeze(const MapShape& s, const Branches& x, const Region& at, void* sum) {
    with_prologue(x,
                  [&](auto prologue) { CHATTN_ISA::squeeze<T, prologue()>(s, x, at, acc(sum)); });
  }
  static void dot(const MapShape& s, const void* g, const Branches& x, const Region& at,
                  void* out) {
    with_count(x.count,
               [&](auto m) { CHATTN_ISA::dot<T, m()>(s, in(g), {s, x, at.n}, at, acc(out)); });
  }
  static void rescale(const MapShape& s, const Branches& x, const Region& at, const void* gate,
                      void* y, bool stream) {
    with_count(x.count, [&](auto m) {
      with_prologue(x, [&](auto prologue) {
        CHATTN_ISA::rescale<T, m(), prologue()>(s, x, at, acc(gate), static_cast<T*>(y), stream);
      });
    });
  }
  static void gradient(const MapShape& s, const void* g, const Region& at, const void* gate,
                       const void* dmean, const MutableBranches& dx, bool stream) {
    with_count(dx.count, [&](auto m) {
      CHATTN_ISA::gradient<T, m()>(s, in(g), at, acc(gate), acc(dmean), {s, dx, at.n}, stream);
    });
  }
  static void moments(const MapShape& s, const void* x, const Region& at, const void* shift,
                      void* sums) {
    CHATTN_ISA::moments<T>(s, in(x), at, acc(shift), acc(sums));
  }
  static void tail(const MapShape& s, const TailMaps& maps, const TailFunctions& f,
                   const TailNumbers& n, const Region& at, void* y, void* mask, bool stream) {
    with_functions<T>(f, false, [&](auto inner, auto act) {
      CHATTN_ISA::tail<T, inner(), act()>(s, maps, f, n, at, static_cast<T*>(y),
                                          static_cast<std::uint8_t*>(mask), stream);
    });
  }
  static void tail_sums(const MapShape& s, const TailMaps& maps, const TailFunctions& f,
                        const TailNumbers& n, const Region& at, void* sums) {
    with_functions<T>(f, maps.mask != nullptr, [&](auto inner, auto act) {
      CHATTN_ISA::tail_sums<T, inner(), act()>(s, maps, f, n, at, acc(sums));
    });
  }
  static void tail_gradient(const MapShape& s, const TailMaps& maps, const TailFunctions& f,
                            const TailNumbers& n, const Region& at, void* dx, void* dresidual,
                            bool stream) {
    with_functions<T>(f, maps.mask != nullptr, [&](auto inner, auto act) {
      CHATTN_ISA::tail_gradient<T, inner(), act()>(s, maps, f, n, at, static_cast<T*>(dx),
                                                   static_cast<T*>(dresidual), stream);
    });
  }
  static constexpr cpu::PassKernels table() {
    return {squeeze, dot, rescale, gradient, moments, tail, tail_sums, tail_gradient};
  }
};

template <class W>
struct Matrices {
  using A = acc_t<W>;
  static void rows(const void* a, const void* w, const void* bias, void* out, index_t rows,
                   index_t out_stride, index_t i0, index_t i1, index_t k) {
    matrix_rows<W>(static_cast<const A*>(a), static_cast<const W*>(w), static_cast<const W*>(bias),
                   static_cast<A*>(out), rows, out_stride, i0, i1, k);
  }
  static void columns(const void* a, const void* w, void* out, index_t rows, index_t i_count,
                      index_t width, index_t k0, index_t k1) {
    matrix_columns<W>(static_cast<const A*>(a), static_cast<const W*>(w), static_cast<A*>(out),
                      rows, i_count, width, k0, k1);
  }
  static void outer(const void* a, const void* b, void* out, void* bias, index_t rows,
                    index_t i_count, index_t i0, index_t i1, index_t k) {
    matrix_outer<W>(static_cast<const A*>(a), static_cast<const A*>(b), static_cast<W*>(out),
                    static_cast<W*>(bias), rows, i_count, i0, i1, k);
  }
  static void activate(Act f, double param, void* values, index_t count) {
    activate_array<A>(f, static_cast<A>(param), static_cast<A*>(values), count);
  }
  static void activate_backward(Act f, double param, const void* z, void* values, void* grad,
                                index_t count) {
    CHATTN_ISA::activate_backward<A>(f, static_cast<A>(param), static_cast<const A*>(z),
                                     static_cast<A*>(values), static_cast<A*>(grad), count);
  }
  static void gate_backward(Act f, const void* gate, const void* dgate, void* grad, index_t count) {
    CHATTN_ISA::gate_backward<A>(f, static_cast<const A*>(gate), static_cast<const A*>(dgate),
                                 static_cast<A*>(grad), count);
  }
  static void softmax(const void* logits, void* gate, index_t rows, index_t stride, index_t count) {
    CHATTN_ISA::softmax<A>(static_cast<const A*>(logits), static_cast<A*>(gate), rows, stride,
                           count);
  }
  static void softmax_backward(const void* gate, void* grad, index_t rows, index_t stride,
                               index_t count) {
    CHATTN_ISA::softmax_backward<A>(static_cast<const A*>(gate), static_cast<A*>(grad), rows,
                                    stride, count);
  }
  static constexpr cpu::MatrixKernels table() {
    return {rows,          columns, outer,           activate, activate_backward,
            gate_backward, softmax, softmax_backward};
  }
};

// In the order of DType.
constexpr cpu::PassKernels kPasses[] = {Passes<float>::table(), Passes<half_t>::table(),
                                        Passes<bfloat16_t>::table(), Passes<double>::table()};
constexpr cpu::MatrixKernels kMatrices[] = {Matrices<float>::table(), Matrices<half_t>::table(),
                                            Matrices<bfloat16_t>::table(),
                                            Matrices<double>::table()};

}  // namespace

extern const cpu::Kernels kernels;
const cpu::Kernels kernels = {CHATTN_STRING(CHATTN_ISA), kPasses, kMatrices};

}  // namespace chattn::CHATTN_ISA
