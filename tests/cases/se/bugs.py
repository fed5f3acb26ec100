"""Bugs to plant in the gate of squeeze-and-excitation."""

from __future__ import annotations

from tests.cuda_host.mutation import PLACE, in_csrc

_MLP = "blocks/se/mlp.cuh"
_GATES, _WEIGHTS = "blocks/se/gate.cuh", "blocks/se/weights.cuh"
_TILE = "engine/cuda/tile_product.cuh"
_OPERANDS = "engine/cuda/product_launch.cuh"
_PRODUCT = "engine/cuda/product.cuh"

BUGS = (
    # ---- off by one
    in_csrc(
        "one-sample-too-many", _PRODUCT,
        "return n0 + e / P::kN < shape.n && j0 + e % P::kN < shape.r;",
        "return n0 + e / P::kN <= shape.n && j0 + e % P::kN < shape.r;",
        PLACE + "(out-of-bounds|race)",
    ),
    in_csrc(
        "one-hidden-unit-too-many", _PRODUCT,
        "return n0 + e / P::kN < shape.n && j0 + e % P::kN < shape.r;",
        "return n0 + e / P::kN < shape.n && j0 + e % P::kN <= shape.r;",
        PLACE + "(out-of-bounds|race)",
    ),
    # ---- something is not written
    in_csrc(
        "pooled-not-written", _MLP,
        "st(pooled + i, total.sum(i) * scale);", "(void)i;",
        PLACE + "load of 'pooled' at byte 0, which nothing has written",
    ),
    in_csrc(
        "bias-gradient-of-first-tile-only", _WEIGHTS,
        "n0 == 0 && m0 + tid < height) db.put", "n0 == 0 && m0 == 0 && tid < height) db.put",
        "se_backward: no kernel wrote 'db[12]' at byte [1-9]",
    ),
    in_csrc(
        "reads-partial-sums-that-nobody-left", _PRODUCT,
        "part[q][r] = q < shape.splits() && exists(e)",
        "part[q][r] = q <= shape.splits() && exists(e)",
        PLACE + "(race on 'scratch'|load of 'scratch' at byte|out-of-bounds load)",
    ),
    in_csrc(
        "last-tile-of-weights-forgotten", "blocks/se/launch.cu",
        "weights.blocks = weight_blocks(p.map, p.gate);",
        "weights.blocks = weight_blocks(p.map, p.gate) - 1;",
        "se_backward: no kernel wrote 'dw1' at byte",
    ),
    in_csrc(
        "gates-of-the-first-group-only", _TILE,
        "for (int g = 1; g < kGroups; ++g) result[r]", "for (int g = 1; g < 1; ++g) result[r]",
        "(gate|y): max-abs error",
    ),
    in_csrc(
        "sums-of-the-first-group-only", _PRODUCT,
        "for (int g = 1; g < kGroups; ++g) value[r]", "for (int g = 1; g < 1; ++g) value[r]",
        "hidden: max-abs error",
    ),
    in_csrc(
        "parts-of-another-thread-forgotten", _PRODUCT,
        "for (int w = tid + words; w < kThreads; w += words) {",
        "for (int w = tid + words; w < words; w += words) {",
        "pooled: max-abs error",
    ),
    # ---- alignment
    in_csrc(
        "words-of-any-weights", _OPERANDS,
        "* element % 16 == 0;", "* element % 16 >= 0;",
        PLACE + "misaligned global load of 16 bytes",
    ),
    # ---- races
    in_csrc(
        "product-that-leaves-while-others-read", _PRODUCT,
        "    cluster_sync_relaxed();  // nobody", "    // nobody",
        PLACE + "(a block exits with no cluster barrier|access to the shared .*, which has exited)",
    ),
    in_csrc(
        "product-that-publishes-nothing", _PRODUCT,
        "    cluster_sync();\n    const int slice",
        "    cluster_sync_relaxed();\n    const int slice",
        PLACE + "race on 'shared memory'",
    ),
    in_csrc(
        "every-tile-writes-pooled", _PRODUCT,
        "rows, columns, j0 == 0,", "rows, columns, true,",
        PLACE + "race on '(pooled|dz|scratch)'",
    ),
    # ---- wrong numbers, seen by the comparison only
    in_csrc(
        "not-the-mean-of-one-layer", _MLP,
        "st(pooled + i, total.sum(i) * scale);", "st(pooled + i, total.sum(i));",
        "pooled: max-abs error",
    ),
    in_csrc(
        "gradient-of-the-mean-not-divided", _GATES,
        "dp[r] / shape.hw", "dp[r]",
        "dx: max-abs error",
    ),
)  # fmt: skip
