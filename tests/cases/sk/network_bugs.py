"""Bugs to plant in the network between the passes of a selective kernel that is one operator."""

from __future__ import annotations

from tests.cuda_host.mutation import PLACE, Mutant, in_csrc

_NETWORK, _BLOCK = "blocks/sk/network.cuh", "blocks/sk/network.cu"


def _bug(name: str, old: str, new: str, noticed: str, file: str = _NETWORK) -> Mutant:
    return in_csrc(f"network-{name}", file, old, new, noticed)


BUGS = (
    # ---- the hidden values
    _bug(
        "norm-without-eps",
        "A(1) / sqrt(of_variance + eps)",
        "A(1) / sqrt(of_variance)",
        "activated: max-abs error",
    ),
    _bug(
        "variance-of-a-sample-of-the-batch",
        "static_cast<A>(squares / count);",
        "static_cast<A>(squares / (count - 1));",
        "batch_var: max-abs error",
    ),
    _bug(
        "sum-without-the-last-warp",
        "for (int w = 0; w < kWarps; ++w)",
        "for (int w = 0; w < kWarps - 1; ++w)",
        "batch_mean: max-abs error",
    ),
    _bug(
        "both-sums-in-one-place",
        "sum_of_unit(total, s, kWarps * kNormUnits)",
        "sum_of_unit(total, s, 0)",
        PLACE + "race",
    ),
    _bug(
        "one-sample-too-many",
        "if (n < samples) values[q] = load",
        "if (n <= samples) values[q] = load",
        PLACE + "(race|out-of-bounds)",
    ),
    # ---- their gradients
    _bug(
        "both-gradient-sums-in-one-place",
        "sum_of_unit(product, s, kWarps * kNormUnits)",
        "sum_of_unit(product, s, 0)",
        PLACE + "race",
    ),
    _bug(
        "fixed-statistics-taken-for-the-batch",
        "a.of_batch ? v.grad - mean_sum - v.normal * mean_product : v.grad",
        "v.grad - mean_sum - v.normal * mean_product",
        "max-abs error",
    ),
    _bug(
        "statistics-without-a-gradient",
        "a.of_batch ? v.grad - mean_sum - v.normal * mean_product : v.grad",
        "v.grad - 0 * (mean_sum + v.normal * mean_product)",
        "max-abs error",
    ),
    _bug(
        "gradient-of-a-bias-that-the-mean-takes-away",
        "a.db_reduce.put(unit, A(0));",
        "a.db_reduce.put(unit, static_cast<A>(sum));",
        "db_reduce",
    ),
    # ---- gradients of the weights
    _bug(
        "gradient-of-a-bias-by-every-tile",
        "tid < kWeightRows && n0 == 0 && m0",
        "tid < kWeightRows && m0",
        PLACE + "race",
    ),
    _bug(
        "tiles-of-one-product-alone",
        "first ? block : block - one.blocks();",
        "block;",
        "out-of-bounds|no kernel wrote|dw_reduce",
    ),
    _bug(
        "rows-beyond-the-last",
        "if (m0 + m < a.rows && n0 + n < a.columns)",
        "if (n0 + n < a.columns)",
        PLACE + "(race|out-of-bounds)",
    ),
    # ---- between the launches
    _bug(
        "counters-of-the-product-before",
        "own.counters += plan.hidden.counters();",
        "own.counters += 0;",
        "max-abs error|isnan|no kernel wrote|race|scratch",
        _BLOCK,
    ),
)
