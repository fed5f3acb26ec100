"""Squeeze-and-excitation with a scale and a bias in the case table: formulas on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from chattn_cuda import activations, functional
from tests.cases.block import Block, Config, name_of


def _parameters(config: Config, random: Callable[..., Tensor]) -> dict[str, Tensor | None]:
    c, rd = config.shape[1], 6
    tail = (1, 1) if config.options.get("conv", False) else ()
    bias = config.options.get("bias", True)
    return {
        "w1": random(rd, c, *tail) / c**0.5,
        "b1": 0.3 * random(rd) + 0.3 if bias else None,
        "w2": random(2 * c, rd, *tail) / rd**0.5,
        "b2": 0.5 * random(2 * c) if bias else None,
    }


def _run(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any], backend: str
) -> tuple[Tensor, Tensor]:
    return functional.squeeze_excite_scale_bias(
        x,
        **parameters,
        act=options.get("act", "relu"),
        gate=options.get("gate", "sigmoid"),
        add_maxpool=options.get("add_maxpool", False),
        return_gate=True,
        backend=backend,
    )


def _eager(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    w1, b1, w2, b2 = parameters.values()
    c = x.shape[1]
    s = x.mean((2, 3))
    if options.get("add_maxpool", False):
        s = 0.5 * s + 0.5 * x.amax((2, 3))
    h = activations.make_layer(options.get("act", "relu"))(F.linear(s, w1.flatten(1), b1))
    z = F.linear(h, w2.flatten(1), b2)
    s = activations.make_layer(options.get("gate", "sigmoid"))(z[:, :c])
    return x * s[:, :, None, None] + z[:, c:, None, None], s


_VARIANTS = (
    {"bias": False, "conv": True},
    {"act": "mish", "gate": "hard_sigmoid"},
    {"add_maxpool": True},
)

BLOCK = Block(
    "scale_bias",
    _parameters,
    _run,
    _eager,
    shapes=(),
    small=(
        Config("board", (3, 20, 8, 8)),
        Config("one", (1, 1, 1, 1)),
        Config("empty", (0, 8, 4, 4)),
    ),
    options=tuple(Config(name_of(o), (3, 18, 5, 7), o) for o in _VARIANTS),
    operator="",
)
