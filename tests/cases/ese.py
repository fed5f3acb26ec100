"""Effective squeeze-and-excitation (one layer) in the case table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chattn_cuda import activations, functional
from tests.cases.block import Block, Config, DropIn, Variant, name_of


def _parameters(config: Config, random: Callable[..., Tensor]) -> dict[str, Tensor | None]:
    c = config.shape[1]
    tail = (1, 1) if config.options.get("conv", False) else ()
    bias = config.options.get("bias", True)
    return {"weight": random(c, c, *tail) / c**0.5, "bias": 0.5 * random(c) if bias else None}


def _run(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any], backend: str
) -> tuple[Tensor, Tensor]:
    return functional.effective_squeeze_excite(
        x,
        **parameters,
        gate=options.get("gate", "hard_sigmoid"),
        add_maxpool=options.get("add_maxpool", False),
        return_gate=True,
        backend=backend,
    )


def _eager(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    weight, bias = parameters.values()
    s = x.mean((2, 3))
    if options.get("add_maxpool", False):
        s = 0.5 * s + 0.5 * x.amax((2, 3))
    gate = activations.make_layer(options.get("gate", "hard_sigmoid"))
    s = gate(F.linear(s, weight.flatten(1), bias))
    return x * s[:, :, None, None], s


_VARIANTS = (
    *({"gate": a.name} for a in activations.ACTIVATIONS.values() if a.is_gate),
    {"bias": False, "conv": True},
    {"add_maxpool": True, "gate": "tanh"},
)

BLOCK = Block(
    "ese",
    _parameters,
    _run,
    _eager,
    shapes=(
        Config("stage1", (1, 256, 28, 28), {"conv": True}),
        Config("stage4", (4, 1024, 7, 7), {"conv": True}),
        Config("hw197", (2, 24, 1, 197)),
        Config("hw90000", (1, 9, 300, 300)),
        Config("batch", (70, 130, 5, 5)),
        Config("c65", (2, 65, 14, 14)),
    ),
    small=(
        Config("hw25", (2, 20, 5, 5)),
        Config("hw49", (3, 17, 7, 7), {"conv": True, "bias": False}),
        Config("hw1", (5, 33, 1, 1)),
        Config("hw30", (2, 12, 6, 5)),
        Config("one", (1, 1, 1, 1), {"gate": "sigmoid"}),
        Config("empty", (0, 8, 4, 4)),
    ),
    options=tuple(Config(name_of(o), (3, 18, 5, 7), o) for o in _VARIANTS),
    function=functional.effective_squeeze_excite,
    weights=lambda channels: [(channels, channels), (channels,)],
    variants={
        "sigmoid": Variant({"gate": "sigmoid"}),
        "tanh-gate": Variant({"gate": "tanh", "return_gate": True}),
        "no-bias": Variant({"gate": "sigmoid"}, lambda channels: [(channels, channels)]),
    },
    smooth={"gate": "sigmoid"},
    threads={},
    constants=((0, 0.0, 11), (0, 0.0, 10)),
    operator="se",
    operator_tensors=lambda tensors: [tensors[0], None, None, *tensors[1:]],
    errors={
        "effective: add_maxpool": (
            lambda: functional.effective_squeeze_excite(
                torch.ones(2, 6, 3, 5), torch.ones(6, 6), add_maxpool="no"
            ),
            TypeError,
            ("add_maxpool must be True or False", "got 'no'"),
        ),
    },
    drop_ins=(
        DropIn(
            "EffectiveSqueezeExcite",
            "timm.layers.squeeze_excite.EffectiveSEModule",
            ({}, {"gate_layer": "sigmoid"}),
        ),
    ),
    samples={
        # with a gate that is smooth
        "timm.layers.squeeze_excite.EffectiveSEModule": lambda cls, channels: cls(
            channels, gate_layer="sigmoid"
        ),
    },
)
