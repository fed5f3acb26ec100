"""Shapes and strides of what the operators of the selective kernel return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import memory_format_of

__all__ = ["FAKES"]


def _fake_squeeze(
    branches: Sequence[Tensor], prologue: Tensor | None = None, act: int = 1, act_param: float = 0.0
) -> Tensor:
    u = branches[0]
    return u.new_empty(u.shape[:2], dtype=reference.accumulation_dtype(u.dtype))


def _fake_select(
    branches: Sequence[Tensor], logits: Tensor, prologue: Tensor | None = None, act: int = 1,
    act_param: float = 0.0,
) -> Tensor:  # fmt: skip
    u = branches[0]
    return torch.empty_like(u, memory_format=memory_format_of(u))


def _fake_dot(dy: Tensor, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
    return logits.new_empty(logits.shape)


def _fake_gradient(
    dy: Tensor, logits: Tensor, dpooled: Tensor | None, channels_last: bool, stacked: bool
) -> list[Tensor]:
    n, c, h, w = dy.shape
    m = logits.shape[1]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    count, channels = (1, m * c) if stacked else (m, c)
    return [
        torch.empty(
            (n, channels, h, w), dtype=dy.dtype, device=dy.device, memory_format=memory_format
        )
        for _ in range(count)
    ]


def _fake_forward(
    branches: Sequence[Tensor], w_reduce: Tensor, b_reduce: Any, weight: Any, bias: Any,
    w_select: Tensor, b_select: Any, mean: Any, var: Any, running: Sequence[Tensor],
    of_batch: bool, momentum: float, eps: float, relu: bool, prologue: Sequence[Tensor],
    prologue_eps: float, prologue_act: int, prologue_param: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    u, m, d = branches[0], len(branches), w_reduce.shape[0]
    n, c = u.shape[:2]
    rows = 2 * n + 2 if of_batch else n if mean is None else 2 * n
    acc = reference.accumulation_dtype(u.dtype)
    y = torch.empty_like(u, memory_format=memory_format_of(u))
    return (y, *(u.new_empty(size, dtype=acc) for size in ((n, c), (rows, d), (n, m, c))))


def _fake_backward(
    dy: Tensor, dlogits: Any, branches: Sequence[Tensor], w_reduce: Tensor, weight: Any,
    w_select: Tensor, mean: Any, var: Any, of_batch: bool, eps: float, relu: bool, pooled: Tensor,
    hidden: Tensor, logits: Tensor, stacked: bool, wanted: int,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    u, d, rows = branches[0], w_reduce.shape[:1], w_select.shape[:1]
    dx = []
    if wanted & 64:
        channels_last = memory_format_of(u) == torch.channels_last
        dx = _fake_gradient(u, logits, None, channels_last, stacked)
    norm = logits if weight is None else weight
    like = [(w_reduce, w_reduce.shape), (w_reduce, d), (norm, d), (norm, d),
            (w_select, w_select.shape), (w_select, rows)]  # fmt: skip
    return dx, [t.new_empty(size) for i, (t, size) in enumerate(like) if wanted >> i & 1]


#: By operator, without the namespace.
FAKES: dict[str, Callable[..., Any]] = {
    "sk_squeeze": _fake_squeeze,
    "sk_select": _fake_select,
    "sk_dot": _fake_dot,
    "sk_gradient": _fake_gradient,
    "sk_forward": _fake_forward,
    "sk_backward": _fake_backward,
}
