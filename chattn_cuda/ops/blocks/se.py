"""Squeeze-and-Excitation: what its operators take and return, and its formulas."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import Block, Saved, Weight, activation_of_code

__all__ = ["BLOCK"]


def _formulas(
    x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: int,
    act_param: float, gate_fn: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    functions = activation_of_code(act, act_param), activation_of_code(gate_fn)
    return reference.squeeze_excite(x, w1, b1, w2, b2, *functions)


def _others(x: Tensor, w1: Tensor | None, b1: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    pooled = reference.squeeze_branches((x,))
    hidden = pooled.new_empty((0,)) if w1 is None else reference.linear(pooled, w1, b1)
    return pooled, hidden


#: Without w1 the gate has one layer: rd is c then, and the pooled values are the hidden ones.
BLOCK = Block(
    "se",
    weights=(
        Weight("w1", "rd c", optional=True, products="rd c"),
        Weight("b1", "rd", optional=True, is_bias=True, beside="w1"),
        Weight("w2", "c rd", products="c rd"),
        Weight("b2", "c", optional=True, is_bias=True),
    ),
    constants=("int act", "float act_param", "int gate_fn"),
    outputs=(Saved("pooled", "n c"), Saved("hidden", "n rd", beside="w1"), Saved("gate", "n c")),
    formulas=_formulas,
    others=_others,
)
