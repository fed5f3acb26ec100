"""Squeeze-and-excitation's Triton kernels."""

from __future__ import annotations

import torch

from chattn_cuda import activations
from tests.cases.se.cuda import calls, reduced
from tests.cases.triton import HUGE, ODD, SMALL, Compiled, Triton

# Hidden units where timm's module would have other ones.
_RD = {ODD: 3, SMALL: 16, HUGE: 1, (2, 24, 6, 5): 4}
_CODES = tuple(a.code for a in activations.ACTIVATIONS.values())
# Activations that are more than a product or a comparison.
_TRANSCENDENTAL = (4, 6, 7, 8, 9)

TRITON = Triton(
    calls,
    usual=tuple(Compiled("se", SMALL, "bf16", cl, {"rd": 0}) for cl in (False, True)),
    rare=(
        Compiled("se", SMALL, "fp32", options={"bias": False, "to_gate": True}),
        Compiled("se", SMALL, "bf16", weights="fp32"),
        *(Compiled("se", SMALL, t, options={"rd": 0, "gate": 11}) for t in ("fp32", "fp64")),
        *(Compiled("se", SMALL, "fp32", options={"act": act}) for act in _CODES),
        *(Compiled("se", SMALL, "fp64", options={"act": act}) for act in _TRANSCENDENTAL),
        *(Compiled("se", SMALL, "fp32", options={"gate": gate}) for gate in (0, 1, 11, 12)),
    ),
    writes_map=("mlp_rescale_kernel", "mlp_spread_kernel"),
    small=("mlp_hidden_kernel", "mlp_dhidden_kernel", "mlp_dweight_kernel"),
    ways={
        "rd1": {"rd": 1},
        "rd16": {"rd": 16},
        "one-layer": {"rd": 0},
        "no-bias": {"bias": False},
        "to-gate": {"to_gate": True},
        "float32-weights": {"dtype": torch.bfloat16, "weights": torch.float32},
        "silu": {"act": 4, "gate": 11},
        "leaky": {"act": 3},
        "only-dx": {"needs": (True, False)},
        "only-dw": {"needs": (False, True)},
        **{
            f"{name}-at-{at}": {"at": {name: at}, "to_gate": True}
            for name in ("x", "dy", "w1", "b1", "w2", "b2", "dgate", "pooled", "hidden", "gate")
            for at in (1, 4)
        },
        "all-at-1": {"at": dict.fromkeys(("x", "dy", "w1", "b1", "w2", "b2"), 1)},
    },
    options=lambda shape: {"rd": _RD.get(shape, reduced(shape[1]))},
)
