"""The selective kernel's Triton kernels."""

from __future__ import annotations

from tests.cases.sk.cuda import calls
from tests.cases.triton import LONG, ODD, SHORT, Compiled, Triton

_LAYOUTS = (False, True)

TRITON = Triton(
    calls,
    usual=tuple(
        Compiled("sk", LONG, "bf16", channels_last, options)
        for channels_last in _LAYOUTS
        for options in ({"m": 4, "to_mean": False}, {"prologue": "relu"}, {"prologue": "silu"})
    ),
    rare=(
        *(Compiled("sk", LONG, "fp32", cl, {"m": m}) for m in (1, 3, 4) for cl in _LAYOUTS),
        Compiled("sk", SHORT, "fp32", options={"m": 4}),
        Compiled("sk", SHORT, "fp32", options={"m": 4, "prologue": "relu"}),
        Compiled("sk", ODD, "fp32", True, {"m": 3, "prologue": "relu"}),
        Compiled("sk", ODD, "fp64", options={"m": 4, "to_mean": False}),
    ),
    writes_map=("select_kernel", "select_spread_kernel"),
    small=("mean_kernel", "logit_gradient_kernel"),
    ways={
        "1": {"m": 1},
        "4": {"m": 4},
        "prologue": {"prologue": "relu"},
        "prologue-leaky": {"prologue": "leaky_relu"},
        "no-mean": {"to_mean": False},
        "other-format": {"like_dy": False},
        "other-format-of-one-pixel": {"like_dy": False, "shape": (2, 24, 1, 1)},
        "at-1": {"at": {"x": 1, "dy": 1}},
    },
    operators={"sk_gradient": "branch_gradients"},
)
