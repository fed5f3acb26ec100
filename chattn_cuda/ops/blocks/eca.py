"""Efficient channel attention: what its operators take and return, and its formulas."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import Block, Saved, Weight, activation_of_code

__all__ = ["BLOCK"]


def _formulas(x: Tensor, weight: Tensor, gate_fn: int, circular: bool) -> tuple[Tensor, Tensor]:
    gate = activation_of_code(gate_fn)
    return reference.efficient_channel_attention(x, weight, gate, circular)


def _others(x: Tensor, *args: Any) -> tuple[Tensor]:
    return (reference.squeeze_branches((x,)),)


#: One row of k taps for all channels, or a row for each.
BLOCK = Block(
    "eca",
    weights=(Weight("weight", "rows one k", products="c k"),),
    constants=("int gate_fn", "bool circular"),
    outputs=(Saved("pooled", "n c"), Saved("gate", "n c")),
    formulas=_formulas,
    others=_others,
)
