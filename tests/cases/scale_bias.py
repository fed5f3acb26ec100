"""Squeeze-and-excitation with a scale and a bias in the case table: formulas on every backend."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from chattn_cuda import activations, functional
from tests.cases import se
from tests.cases.block import Block, Config, name_of


def _eager(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    scale, shift = se.logits(x, parameters, options).chunk(2, 1)
    s = activations.make_layer(options.get("gate", "sigmoid"))(scale)
    return x * s[:, :, None, None] + shift[:, :, None, None], s


_VARIANTS = (
    {"bias": False, "conv": True},
    {"act": "mish", "gate": "hard_sigmoid"},
    {"add_maxpool": True},
)

BLOCK = Block(
    "scale_bias",
    functools.partial(se.parameters, per_channel=2),
    functools.partial(se.run, function=functional.squeeze_excite_scale_bias),
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
