"""Bugs to plant in the selective kernel, and in what the shared passes do for it alone."""

from __future__ import annotations

from tests.cuda_host.mutation import PLACE, in_csrc

_SELECT, _SK = "blocks/sk/gate.cuh", "blocks/sk/passes.cu"
_APPLY, _REDUCE = "engine/cuda/apply.cuh", "engine/cuda/reduce.cuh"
_ELEMENTS, _IO = "engine/cuda/elements.cuh", "engine/cuda/reduce_io.cuh"

BUGS = (
    # ---- gates
    in_csrc(
        "one-gate-too-many", "engine/cuda/apply.cuh",
        "if (t % kApplyChannels < p.channels)", "if (t % kApplyChannels <= p.channels)",
        PLACE + "(race|out-of-bounds)",
    ),
    in_csrc(
        "softmax-without-its-first-branch", _SELECT,
        "total += s[b] = exp(s[b] - top);",
        "{ s[b] = exp(s[b] - top); total += b > 0 ? s[b] : A(1); }",
        "y: max-abs error",
    ),
    in_csrc(
        "softmax-that-overflows", _SELECT,
        "exp(s[b] - top)", "exp(s[b])",
        "y: is(nan|posinf)",
    ),
    in_csrc(
        "softmax-that-vanishes", _SELECT,
        "exp(s[b] - top)", "exp(s[b] - nan_max(top, A(0)))",
        "y: max-abs error",
    ),
    in_csrc(
        "softmax-over-channels", _SELECT,
        "static_cast<index_t>(b) * c));", "b + 0 * c));",
        "y: max-abs error",
    ),
    in_csrc(
        "gates-of-the-first-sample-in-the-gradient", _SELECT,
        "at = static_cast<index_t>(n) * M * c + channel;", "at = channel;",
        "dx0?: max-abs error",
    ),
    in_csrc(
        "gradient-of-the-sum-not-the-mean", _SELECT,
        "ld(dpooled + static_cast<index_t>(n) * c + channel) / hw",
        "ld(dpooled + static_cast<index_t>(n) * c + channel)",
        "dx0?: max-abs error",
    ),
    # ---- what follows the sums
    in_csrc(
        "one-mean-of-branches-too-many", _SELECT,
        "if (i < planes) st(pooled", "if (i <= planes) st(pooled",
        PLACE + "(out-of-bounds|load of 'scratch')",
    ),
    in_csrc(
        "one-logit-too-many", _SELECT,
        "if (i >= a.planes) return;", "if (i > a.planes) return;",
        PLACE + "(race|out-of-bounds|load of 'scratch')",
    ),
    in_csrc(
        "logit-gradient-without-the-gates-in-its-sum", _SELECT,
        "total += s[b] * (ds[b] =", "total += (ds[b] =",
        "dlogits: max-abs error",
    ),
    in_csrc(
        "gates-of-the-first-sample-in-the-logit-gradient", _SELECT,
        "softmax(a.logits + at, c, s);", "softmax(a.logits + (i - n * c), c, s);",
        "dlogits: max-abs error",
    ),
    in_csrc(
        "branches-share-their-partial-sums", _SK,
        "io.out[b] = sums + b * plan.splits * planes;",
        "io.out[b] = sums + b * planes;",
        PLACE + "race on 'scratch'",
    ),
    # ---- the prologue
    in_csrc(
        "prologue-of-the-next-branch", _SELECT,
        "s[b] * ld(prologue + row)", "s[b] * ld(prologue + (b + 1) % M * c + p.c0 + i)",
        "y: max-abs error",
    ),
    in_csrc(
        "prologue-without-relu", _ELEMENTS,
        "s[0] += nan_max(A(0), r.scale[m] * v[m] + r.shift[m]);",
        "s[0] += r.scale[m] * v[m] + r.shift[m];",
        "pooled: max-abs error",
    ),
    in_csrc(
        "prologue-sums-by-another-activation", _ELEMENTS,
        "s[0] += called_activation(act,", "s[0] += called_activation(Act::relu,",
        "pooled: max-abs error",
    ),
    in_csrc(
        "prologue-weighs-by-another-activation", _ELEMENTS,
        "r += gate[m] * called_activation(act,",
        "r += gate[m] * called_activation(Act::relu,",
        "y: max-abs error",
    ),
    in_csrc(
        "prologue-forgets-the-slope", _SK,
        "static_cast<A>(x.act_param)", "A(0.01)",
        "pooled: max-abs error",
    ),
    in_csrc(
        "prologue-of-the-plane-not-its-channel", _IO,
        "const index_t channel = plane - sample_of(plane) * sample_planes;",
        "const index_t channel = plane;",
        PLACE + "out-of-bounds load|pooled: max-abs error",
    ),
    # ---- slices of one map
    in_csrc(
        "slices-taken-for-dense-in-tiles", _REDUCE,
        "skip = io.skipped(n);", "(void)n;",
        "pooled: max-abs error",
    ),
    in_csrc(
        "tile-runs-into-the-next-sample", _REDUCE,
        "end = (n + 1) * io.sample_planes;", "end = planes;",
        PLACE + "race on 'scratch'",
    ),
    in_csrc(
        "gap-behind-every-plane", _REDUCE,
        "io.skipped(io.sample_of(plane))", "io.skipped(plane)",
        PLACE + "out-of-bounds load of 16 bytes",
    ),
    in_csrc(
        "gap-behind-every-sample-of-rows", _REDUCE,
        "io.skipped(first)", "io.skipped(n)",
        "pooled: max-abs error",
    ),
    in_csrc(
        "gradient-forgets-the-samples-before", _APPLY,
        "io.skipped_out(row)", "io.skipped_out(at + 0 * row)",
        PLACE + "race on 'dx'",
    ),
    # ---- traffic
    in_csrc(
        "branches-read-twice", _IO,
        "place.v[m] = load_from<V>(m, in[m] + behind(m, offset + (is_slice(m) ? skip : 0)));",
        "for (int i = 0; i <= (is_slice(m) ? 1 : 0); ++i)\n"
        "        place.v[m] = load_from<V>(m, in[m] + offset + (is_slice(m) ? skip : 0));",
        "x0: .* bytes in loads, expected",
    ),
)  # fmt: skip
