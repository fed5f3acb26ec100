"""The fused tail's Triton kernels."""

from __future__ import annotations

import torch

from chattn_cuda import activations
from tests.cases.tail.cuda import IDENTITY, LEAKY_RELU, RELU6, SILU, calls
from tests.cases.triton import LONG, ODD, SHORT, SMALL, Compiled, Triton

_LAYOUTS = (False, True)
_CODES = tuple(a.code for a in activations.ACTIVATIONS.values())
_GELU = 6
_INNER = {"inner": SILU, "act": IDENTITY, "residual": False}

TRITON = Triton(
    calls,
    usual=tuple(
        Compiled("tail", SHORT if channels_last else LONG, "bf16", channels_last, options)
        for channels_last in _LAYOUTS
        for options in (
            _INNER,
            {"residual": False, "gate": False},
            {"act": SILU},
            {"of_batch": False, "train": False},
        )
    ),
    rare=(
        *(
            Compiled("tail", LONG, t, cl, options)
            for t in ("fp32", "fp64")
            for cl in _LAYOUTS
            for options in (_INNER, {"inner": _GELU, "act": _GELU})
        ),
        *(Compiled("tail", SMALL, "fp32", options={"inner": act}) for act in _CODES),
        *(Compiled("tail", SMALL, "fp32", True, {"act": act}) for act in _CODES),
        *(Compiled("tail", ODD, "bf16", cl, {"inner": SILU, "act": SILU}) for cl in _LAYOUTS),
        Compiled("tail", SMALL, "bf16", weights="fp32"),
    ),
    writes_map=("tail_apply_kernel", "tail_gradient_kernel"),
    small=("tail_statistics_kernel", "tail_sums_kernel", "tail_norm_kernel", "mean_kernel"),
    ways={
        "inner": _INNER,
        "no-gate": {"gate": False},
        "no-residual": {"residual": False, "act": LEAKY_RELU},
        "relu6": {"act": RELU6},
        "no-mask": {"train": False},
        "smooth": {"act": SILU},
        "running": {"of_batch": False},
        "together": {"lost": True},
        "float32-weights": {"dtype": torch.bfloat16, "weights": torch.float32},
        **{
            f"{name}-at-1": {"at": {name: 1}}
            for name in ("x", "dy", "residual", "weight", "numbers", "gate", "sums", "means")
        },
    },
    folds_numbers=True,
)
