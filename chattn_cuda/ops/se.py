"""Squeeze-and-Excitation: what its operators return, and its formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import Block, activation_of_code, memory_format_of

__all__ = ["BLOCK"]


def _fake_forward(
    x: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: int,
    act_param: float,
    gate_fn: int,
) -> tuple[Tensor, ...]:
    n, c = x.shape[:2]
    acc = reference.accumulation_dtype(x.dtype)
    return (
        torch.empty_like(x, memory_format=memory_format_of(x)),
        x.new_empty((n, c), dtype=acc),
        x.new_empty((0,) if w1 is None else (n, w1.shape[0]), dtype=acc),
        x.new_empty((n, c), dtype=acc),
    )


def _fake_backward(
    dy: Tensor,
    dgate: Tensor | None,
    x: Tensor,
    pooled: Tensor,
    hidden: Tensor,
    gate: Tensor,
    w1: Tensor | None,
    w2: Tensor,
    act: int,
    act_param: float,
    gate_fn: int,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, ...]:
    dx = torch.empty_like(x, memory_format=memory_format_of(x)) if need_dx else x.new_empty((0,))
    first = [(0,)] * 2 if w1 is None or not need_dw else [w1.shape, w1.shape[:1]]
    second = [w2.shape, w2.shape[:1]] if need_dw else [(0,)] * 2
    return (dx, *(w2.new_empty(shape) for shape in first + second))


def _formulas(
    x: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: int,
    act_param: float,
    gate_fn: int,
) -> tuple[Tensor, Tensor]:
    return reference.squeeze_excite(
        x,
        w1,
        b1,
        w2,
        b2,
        activation_of_code(act, act_param),
        activation_of_code(gate_fn),
    )


BLOCK = Block("se", 5, 3, (2, 4), _fake_forward, _fake_backward, _formulas)
