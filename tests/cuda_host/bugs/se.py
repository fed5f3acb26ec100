"""Bugs in the gate of squeeze-and-excitation."""

from __future__ import annotations

from tests.cuda_host.mutation import PLACE, in_csrc

_MLP = "gates/mlp_cuda.cuh"

BUGS = (
    # ---- off by one
    in_csrc(
        "one-sample-too-many", _MLP,
        "{ return n0 + m < shape.n && j0 + j < shape.rd; }",
        "{ return n0 + m <= shape.n && j0 + j < shape.rd; }",
        PLACE + "(out-of-bounds|race)",
    ),
    in_csrc(
        "one-hidden-unit-too-many", _MLP,
        "{ return n0 + m < shape.n && j0 + j < shape.rd; }",
        "{ return n0 + m < shape.n && j0 + j <= shape.rd; }",
        PLACE + "(out-of-bounds|race)",
    ),
    # ---- something is not written
    in_csrc(
        "peak-not-written", _MLP,
        "if (store) st(peak + i, t);", "",
        "se_forward: no kernel wrote 'peak' at byte 0",
    ),
    in_csrc(
        "bias-gradient-of-first-tile-only", _MLP,
        "if (c0 + i < c && j0 == 0) a.db2.put(c0 + i, v);",
        "if (c0 + i < c && j0 == 0 && c0 == 0) a.db2.put(c0 + i, v);",
        "se_backward: no kernel wrote 'db2' at byte [1-9]",
    ),
    in_csrc(
        "reads-partial-sums-that-nobody-left", _MLP,
        "const Partials<A> left{parts, splits, stride};",
        "const Partials<A> left{parts, splits + 1, stride};",
        PLACE + "(race on 'scratch'|load of 'scratch' at byte)",
    ),
    # ---- races
    in_csrc(
        "every-tile-writes-pooled", _MLP,
        "rows.store = j0 == 0;", "rows.store = true;",
        PLACE + "race on '(pooled|dz|scratch)'",
    ),
    # ---- wrong numbers, seen by the comparison only
    in_csrc(
        "mean-of-two-maxima", _MLP,
        "v = A(0.5) * (v + t);", "v = A(0.5) * (t + t);",
        "pooled: max-abs error",
    ),
    in_csrc(
        "ties-of-the-maximum-not-shared", _MLP,
        "dp / count.sum(plane)", "dp / (count.sum(plane) + 1)",
        "dx: max-abs error",
    ),
)  # fmt: skip
