"""Shapes and strides of what the operators of a tail return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import memory_format_of

__all__ = ["FAKES"]


def _map(x: Tensor, wanted: bool = True) -> Tensor:
    if not wanted:
        return x.new_empty((0,))
    return torch.empty_like(x, memory_format=memory_format_of(x))


def _numbers(x: Tensor, *sizes: int) -> Tensor:
    return x.new_empty(sizes, dtype=reference.accumulation_dtype(x.dtype))


def _fake_squeeze(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, running: Any, momentum: float,
    eps: float, inner: int, inner_param: float, pool: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    n, c = x.shape[:2]
    variance = _numbers(x, c if mean is None else 0)
    pooled = (n, c) if pool else (0,)
    means = pooled if inner == 0 else (0,)
    return _numbers(x, 4, c), variance, _numbers(x, *means), _numbers(x, *pooled)


def _fake_apply(
    x: Tensor, residual: Any, numbers: Tensor, gate: Any, inner: int, inner_param: float, act: int,
    act_param: float, need_mask: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n, c, h, w = x.shape
    rows, length = n * c, h * w
    if memory_format_of(x) == torch.channels_last or h * w == 1:
        rows, length = n * h * w, c
    return _map(x), x.new_empty((rows if need_mask else 0, -(-length // 8)), dtype=torch.uint8)


def _fake_reduce(
    dy: Tensor, x: Tensor, residual: Any, mask: Any, numbers: Tensor, gate: Any, inner: int,
    inner_param: float, act: int, act_param: float, need_dgate: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n, c = x.shape[:2]
    dgate = (n, c) if need_dgate else (0,)
    return _numbers(x, n, 2 if inner == 0 else 5, c), _numbers(x, *dgate)


def _fake_gradient(
    dy: Tensor, x: Tensor, residual: Any, mask: Any, numbers: Tensor, gate: Any, sums: Any,
    means: Any, dpooled: Any, weight: Any, lost: Any, inner: int, inner_param: float, act: int,
    act_param: float, of_batch: bool, need_dx: bool, need_dresidual: bool, need_dnorm: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    like = x if weight is None else weight
    of_norm = (like.new_empty((x.shape[1] if need_dnorm else 0,)) for _ in range(2))
    return _map(x, need_dx), _map(x, need_dresidual), *of_norm


#: By operator, without the namespace.
FAKES: dict[str, Callable[..., Any]] = {
    "tail_squeeze": _fake_squeeze,
    "tail_apply": _fake_apply,
    "tail_reduce": _fake_reduce,
    "tail_gradient": _fake_gradient,
}
