"""Shapes and strides of what the operators of the selective kernel return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import memory_format_of

__all__ = ["FAKES"]


def _fake_squeeze(branches: Sequence[Tensor], prologue: Tensor | None = None) -> Tensor:
    u = branches[0]
    return u.new_empty(u.shape[:2], dtype=reference.accumulation_dtype(u.dtype))


def _fake_select(
    branches: Sequence[Tensor], logits: Tensor, prologue: Tensor | None = None
) -> Tensor:
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
    w_select: Tensor, b_select: Any, mean: Any, var: Any, of_batch: bool, momentum: float,
    eps: float, relu: bool, prologue: Any = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    u, m, d = branches[0], len(branches), w_reduce.shape[0]
    n, c = u.shape[:2]
    normalised = of_batch or mean is not None
    y = torch.empty_like(u, memory_format=memory_format_of(u))
    statistics = [d if of_batch else 0]
    sizes = [(n, c), (n if normalised else 0, d), (n, d), statistics, statistics, (n, m, c)]
    return (y, *(w_reduce.new_empty(size) for size in sizes))


def _fake_backward(
    dy: Tensor, dlogits: Any, branches: Sequence[Tensor], w_reduce: Tensor, weight: Any,
    w_select: Tensor, mean: Any, var: Any, of_batch: bool, eps: float, relu: bool, pooled: Tensor,
    hidden: Tensor, activated: Tensor, logits: Tensor, stacked: bool, need_dx: bool, need_dw: bool,
) -> tuple[Any, ...]:  # fmt: skip
    u, d = branches[0], w_reduce.shape[0]
    dx = []
    if need_dx:
        channels_last = memory_format_of(u) == torch.channels_last
        dx = _fake_gradient(u, logits, None, channels_last, stacked)
    of_norm = [d if need_dw and (of_batch or mean is not None) else 0]
    sizes = [w_reduce.shape, [d], of_norm, of_norm, w_select.shape, [w_select.shape[0]]]
    if not need_dw:
        sizes = [[0] for _ in sizes]
    return (dx, *(w_reduce.new_empty(size) for size in sizes))


#: By operator, without the namespace.
FAKES: dict[str, Callable[..., Any]] = {
    "sk_squeeze": _fake_squeeze,
    "sk_select": _fake_select,
    "sk_dot": _fake_dot,
    "sk_gradient": _fake_gradient,
    "sk_forward": _fake_forward,
    "sk_backward": _fake_backward,
}
