"""Efficient channel attention: what its operators return, and its formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import Block, activation_of_code, memory_format_of

__all__ = ["BLOCK"]


def _fake_forward(
    x: Tensor, weight: Tensor, gate_fn: int, circular: bool
) -> tuple[Tensor, Tensor, Tensor]:
    acc = reference.accumulation_dtype(x.dtype)
    return (
        torch.empty_like(x, memory_format=memory_format_of(x)),
        x.new_empty(x.shape[:2], dtype=acc),
        x.new_empty(x.shape[:2], dtype=acc),
    )


def _fake_backward(
    dy: Tensor,
    dgate: Tensor | None,
    x: Tensor,
    pooled: Tensor,
    gate: Tensor,
    weight: Tensor,
    gate_fn: int,
    circular: bool,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=memory_format_of(x)) if need_dx else x.new_empty((0,))
    return dx, weight.new_empty(weight.shape if need_dw else (0,))


def _formulas(x: Tensor, weight: Tensor, gate_fn: int, circular: bool) -> tuple[Tensor, Tensor]:
    gate = activation_of_code(gate_fn)
    return reference.efficient_channel_attention(x, weight, gate, circular)


BLOCK = Block("eca", 2, 2, (), _fake_forward, _fake_backward, _formulas)
