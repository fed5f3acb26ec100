"""Squeeze-and-excitation: its cases, and what the tests know of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda import activations, functional
from tests.cases.block import Block, Config, DropIn, Variant, name_of
from tests.cases.se.by_hand import BY_HAND
from tests.cases.se.cuda import KERNELS
from tests.cases.se.triton import TRITON


def parameters(
    config: Config, random: Callable[..., Tensor], per_channel: int = 1
) -> dict[str, Tensor | None]:
    """The weights of a gate with ``per_channel`` outputs for each channel."""
    c = config.shape[1]
    rd, outputs = config.options.get("rd", 8), per_channel * c
    tail = (1, 1) if config.options.get("conv", False) else ()
    bias = config.options.get("bias", True)
    return {
        "w1": random(rd, c, *tail) / c**0.5,
        "b1": 0.3 * random(rd) + 0.3 if bias else None,
        "w2": random(outputs, rd, *tail) / rd**0.5,
        "b2": 0.5 * random(outputs) if bias else None,
    }


def run(
    x: Tensor,
    parameters: dict[str, Tensor | None],
    options: dict[str, Any],
    backend: str,
    function: Callable[..., Any] = functional.squeeze_excite,
) -> tuple[Tensor, Tensor]:
    """(y, gate) by a function of the SE family."""
    return function(
        x,
        **parameters,
        act=options.get("act", "relu"),
        gate=options.get("gate", "sigmoid"),
        add_maxpool=options.get("add_maxpool", False),
        return_gate=True,
        backend=backend,
    )


def logits(x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]) -> Tensor:
    """What the gate function gets, in plain PyTorch."""
    act = options.get("act", "relu")
    if not isinstance(act, torch.nn.Module):
        act = activations.make_layer(act)
    w1, b1, w2, b2 = parameters.values()
    s = x.mean((2, 3))
    if options.get("add_maxpool", False):
        s = 0.5 * s + 0.5 * x.amax((2, 3))
    return F.linear(act(F.linear(s, w1.flatten(1), b1)), w2.flatten(1), b2)


def _eager(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    gate = activations.make_layer(options.get("gate", "sigmoid"))
    s = gate(logits(x, parameters, options))
    return x * s[:, :, None, None], s


def _weights(channels: int) -> list[tuple[int, ...]]:
    rd = 2 if channels < 6 else 4
    return [(rd, channels), (rd,), (channels, rd), (channels,)]


_VARIANTS = (
    *({"act": a} for a in activations.ACTIVATIONS),
    *({"gate": a.name} for a in activations.ACTIVATIONS.values() if a.is_gate),
    {"act": "leaky_relu", "gate": "hard_sigmoid", "conv": True},
    {"act": torch.nn.LeakyReLU(0.3), "bias": False},
    {"act": torch.nn.ELU(0.7), "gate": "tanh", "conv": True, "bias": False},
    {"act": "silu", "gate": "hard_sigmoid", "conv": True},
    {"add_maxpool": True},
)

BLOCK = Block(
    "se",
    parameters,
    run,
    _eager,
    shapes=(
        Config("stage1", (1, 256, 56, 56), {"rd": 16, "conv": True}),
        Config("stage4", (4, 2048, 7, 7), {"rd": 128, "conv": True}),
        Config("c228", (2, 228, 28, 28), {"rd": 19}),
        Config("c300", (2, 300, 14, 14), {"rd": 25}),
        Config("hw1", (3, 33, 1, 1), {"rd": 5}),
        Config("hw197", (2, 24, 1, 197), {"rd": 7}),
        Config("hw361", (2, 17, 19, 19), {"rd": 19}),
        Config("hw90000", (1, 9, 300, 300), {"rd": 3}),
        Config("wide", (2, 3840, 3, 3), {"rd": 160}),
        Config("batch", (70, 20, 5, 5), {"rd": 6}),
        Config("batch_wide", (70, 256, 1, 2), {"rd": 40}),
        Config("c65", (2, 65, 14, 14), {"rd": 16}),
        Config("few", (2, 3, 40, 41), {"rd": 2}),
        Config("few_odd", (1, 9, 23, 29), {"rd": 2}),
        Config("spans", (2, 40, 23, 25), {"rd": 6}),
        Config("whole_rows", (1, 250, 11, 9), {"rd": 7}),
        Config("one", (1, 1, 1, 1), {"rd": 1, "act": "silu"}),
        Config("empty", (0, 8, 4, 4), {"rd": 4}),
        Config("long_sums", (1, 4, 1000, 1000), {"rd": 2, "offset": 3.0, "act": "silu"}),
    ),
    small=(
        Config("hw25", (2, 20, 5, 5), {"rd": 6}),
        Config("hw49", (3, 17, 7, 7), {"rd": 19, "conv": True}),
        Config("hw1", (5, 33, 1, 1), {"rd": 5, "bias": False}),
        Config("hw361", (1, 8, 19, 19), {"rd": 2}),
        Config("hw30", (2, 12, 6, 5), {"rd": 4}),
        Config("one", (1, 1, 1, 1), {"rd": 1, "act": "silu"}),
        Config("empty", (0, 8, 4, 4), {"rd": 4}),
    ),
    options=tuple(Config(name_of(o), (3, 18, 5, 7), {"rd": 6, **o}) for o in _VARIANTS),
    function=functional.squeeze_excite,
    weights=_weights,
    variants={
        "relu": Variant({}),
        "silu-tanh-gate": Variant({"act": "silu", "gate": "tanh", "return_gate": True}),
        "gelu-hard-gate": Variant({"act": "gelu", "gate": "hard_sigmoid"}),
    },
    constants=((1, 0.0, 11), (4, 0.0, 10)),
    smooth={"act": "silu"},
    not_finite={"se": {"rd": 6}},
    threads={"rd": 9},
    shared_sums=(
        Config("split", (3, 260, 1, 2), {"rd": 40}),
        Config("split_wide", (66, 260, 1, 1), {"rd": 34}),
    ),
    by_hand=BY_HAND,
    kernels=(KERNELS,),
    triton=TRITON,
    drop_ins=(
        DropIn(
            "SqueezeExcite",
            "timm.layers.squeeze_excite.SEModule",
            ({}, {"rd_channels": 6, "norm_layer": nn.BatchNorm2d}),
        ),
        DropIn(
            "SqueezeExciteCl",
            "timm.layers.squeeze_excite.SqueezeExciteCl",
            ({"rd_channels": 6}, {"rd_ratio": 0.25, "bias": False, "act_layer": "silu"}),
        ),
    ),
    samples={
        "SqueezeExciteScaleBias": lambda cls, channels: cls(channels, 2),
        "SpatialChannelSqueezeExcite": lambda cls, channels: cls(channels, 4),
        "timm.models.senet.SEModule": lambda cls, channels: cls(channels, 4),
        "torchvision.ops.misc.SqueezeExcitation": lambda cls, channels: cls(channels, 4),
    },
)
