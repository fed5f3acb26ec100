"""The tail around a gate on Triton: what to allocate and to launch.

A squeeze is up to four launches: moments of planes and the norm's numbers; with an activation in
front of the gate a fold of its values, and their means. Each other operator is at most two: apply;
reduce and merge; the norm's gradients and those of the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda.reference import accumulation_dtype

from . import host
from .kernels import elements
from .kernels import tail as kernels
from .kernels.sk import mean_kernel
from .plan import UNLIMITED, PassPlan, plan_pass
from .program import Operator

SCHEMAS = (
    "tail_squeeze(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, "
    "Tensor(a!)[] running, float momentum, float eps, int inner, float inner_param, bool pool) -> "
    "(Tensor numbers, Tensor variance, Tensor means, Tensor pooled)",
    "tail_apply(Tensor x, Tensor? residual, Tensor numbers, Tensor? gate, int inner, "
    "float inner_param, int act, float act_param, bool need_mask) -> (Tensor y, Tensor mask)",
    "tail_reduce(Tensor dy, Tensor x, Tensor? residual, Tensor? mask, Tensor numbers, "
    "Tensor? gate, int inner, float inner_param, int act, float act_param, bool need_dgate) -> "
    "(Tensor sums, Tensor dgate)",
    "tail_gradient(Tensor dy, Tensor x, Tensor? residual, Tensor? mask, Tensor numbers, "
    "Tensor? gate, Tensor? sums, Tensor? means, Tensor? dpooled, Tensor? weight, Tensor? lost, "
    "int inner, float inner_param, int act, float act_param, bool of_batch, bool need_dx, "
    "bool need_dresidual, bool need_dnorm) -> (Tensor dx, Tensor dresidual, Tensor dweight, "
    "Tensor dbias)",
)
_IDENTITY, _RELU, _RELU6, _LEAKY_RELU = range(4)  # those made of straight lines
_PLANES = 256  # of a program of the kernels that take planes
_SAMPLES, _COLUMNS = 64, 8  # at a time, of those that take channels


def _kept(x: Tensor, residual: Tensor | None, act: int, mask: Tensor | None) -> Tensor | None:
    """The residual, where the derivative needs it."""
    return None if act == _IDENTITY or mask is not None else residual


def _tiles(inner: int, act: int, maps: int) -> int:
    """How many tiles a pass over so many maps keeps; an activation is as good as some more."""
    return 2 if inner == _IDENTITY and act <= _LEAKY_RELU and maps < 3 else 4


def _plan(x: Tensor, channels_last: bool, tiles: int, has_bits: bool) -> PassPlan:
    n, c, hw, cl = host.shape_of(x, channels_last)
    size, least = x.element_size(), 8 if has_bits else 1
    return plan_pass(n, c, hw, cl, size, tiles, UNLIMITED, fill=host.FILL, least=least)


def squeeze_launches(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None,
    running: Sequence[Tensor], momentum: float, eps: float, inner: int, inner_param: float,
    pool: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[host.Launch]]:  # fmt: skip
    """Plan of ``tail_squeeze``: numbers (4, C), variance (C), means and pooled (N, C); launches.

    Args:
        x: (N, C, H, W), any strides.
        weight: (C,) or None.
        bias: (C,) or None.
        mean: (C,), running statistics; None for those of the batch.
        var: the same.
        running: mean, variance and perhaps the count of updates, which follow those of the batch.
        momentum: the weight of the batch in them.
        eps: added to the variance.
        inner: code of the activation in front of the gate.
        inner_param: its parameter.
        pool: whether its mean is wanted, and without one that of x.

    Returns:
        Accumulators; shape (0,) for what is not wanted, and for a variance that is given.
    """
    channels_last = host.is_channels_last(x)
    n, c, hw, _ = host.shape_of(x, channels_last)
    of_batch, plain = mean is None, inner == _IDENTITY
    if of_batch and n == 0:
        raise RuntimeError("chattn_cuda::tail: statistics of no samples")

    def new(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=accumulation_dtype(x.dtype))

    numbers, variance = new(4, c), new(c if of_batch else 0)
    means = new(n, c) if pool and plain else new(0)
    pooled = new(n, c) if pool else new(0)
    parts, launches, pools = None, [], pool and n > 0
    if of_batch or (pools and plain):
        parts, moments = host.fold(
            (x,), channels_last, kernels.add_differences, states=3, tiles=2, first=True
        )
        launches.append(moments)
    wanted = (means, pooled) if pools and plain else (None, None)
    sizes = (n, c, 1 if parts is None else parts.shape[1], hw)
    follow = (*running, None, None, None)[:3] if of_batch else (None, None, None)
    statistics = (
        parts, weight, bias, mean, var, *follow, numbers, variance if of_batch else None, *wanted,
        *sizes, momentum, eps, _SAMPLES, _COLUMNS,
    )  # fmt: skip
    launches.append(host.Launch(kernels.tail_statistics_kernel, -(-c // _COLUMNS), statistics))
    if pools and not plain:
        sums, squeeze = host.fold(
            (x,), channels_last, elements.add_activated, tiles=2, numbers=numbers[:2],
            given=(inner, inner_param),
        )  # fmt: skip
        of_mean = (sums, pooled, n * c, hw, sums.shape[1], _PLANES)
        launches += [squeeze, host.Launch(mean_kernel, -(-n * c // _PLANES), of_mean)]
    return (numbers, variance, means, pooled), launches


def apply_launches(
    x: Tensor, residual: Tensor | None, numbers: Tensor, gate: Tensor | None, inner: int,
    inner_param: float, act: int, act_param: float, need_mask: bool,
) -> tuple[tuple[Tensor, Tensor], list[host.Launch]]:  # fmt: skip
    """Plan of ``tail_apply``: y, the bits of its derivative, and the launch.

    Args:
        x: (N, C, H, W), any strides.
        residual: like x, or None.
        numbers: those of ``tail_squeeze``.
        gate: (N, C) accumulators, or None.
        inner: code of the activation in front of the gate.
        inner_param: its parameter.
        act: code of the activation behind the residual.
        act_param: its parameter.
        need_mask: whether the bits are wanted; ReLU and ReLU6 have them.
    """
    if need_mask and act not in (_RELU, _RELU6):
        raise RuntimeError("chattn_cuda::tail: this activation's gradient needs more than a mask")
    channels_last = host.is_channels_last(x)
    n, c, hw, cl = host.shape_of(x, channels_last)
    y = host.empty_map(x, channels_last)
    row, rows = (c, n * hw) if cl else (hw, n * c)
    mask = x.new_empty((rows if need_mask else 0, -(-row // 8)), dtype=torch.uint8)
    if n == 0:
        return (y, mask), []
    p = _plan(x, channels_last, _tiles(inner, act, 2), need_mask)
    args = (
        (x, residual), numbers, gate, y, mask if need_mask else None, *host.sizes(p, n),
        (inner, inner_param, act, act_param), *host.constants(p),
    )  # fmt: skip
    return (y, mask), [host.Launch(kernels.tail_apply_kernel, p.programs, args)]


def reduce_launches(
    dy: Tensor, x: Tensor, residual: Tensor | None, mask: Tensor | None, numbers: Tensor,
    gate: Tensor | None, inner: int, inner_param: float, act: int, act_param: float,
    need_dgate: bool,
) -> tuple[tuple[Tensor, Tensor], list[host.Launch]]:  # fmt: skip
    """Plan of ``tail_reduce``: sums over planes (N, 2 or 5, C), the gate's gradient; launches.

    Args:
        dy: gradient of y, any strides.
        x: as in ``tail_apply``, like all but the following.
        residual: as above.
        mask: the bits of ``tail_apply``, or None.
        numbers: as above.
        gate: as above.
        inner: as above.
        inner_param: as above.
        act: as above.
        act_param: as above.
        need_dgate: whether the gate's gradient (N, C) is wanted; else its shape is (0,).
    """
    channels_last = host.is_channels_last(x)
    n, c = x.shape[:2]
    rows = 2 if inner == _IDENTITY else 5
    sums = numbers.new_empty((n, rows, c))
    dgate = numbers.new_empty((n, c) if need_dgate else (0,))
    if n == 0:
        return (sums, dgate), []
    kept = _kept(x, residual, act, mask)
    parts, reduce = host.fold(
        (dy, x, kept), channels_last, kernels.add_tail, states=rows,
        tiles=_tiles(inner, act, 2 + (kept is not None)), bits=mask, numbers=numbers[:3],
        planes=gate, given=(inner, inner_param, act, act_param),
    )  # fmt: skip
    of_gate = dgate if need_dgate else None
    args = (parts, numbers, sums, of_gate, n, c, parts.shape[1], rows, _PLANES)
    merge = host.Launch(kernels.tail_sums_kernel, -(-n * c // _PLANES), args)
    return (sums, dgate), [reduce, merge]


def gradient_launches(
    dy: Tensor, x: Tensor, residual: Tensor | None, mask: Tensor | None, numbers: Tensor,
    gate: Tensor | None, sums: Tensor | None, means: Tensor | None, dpooled: Tensor | None,
    weight: Tensor | None, lost: Tensor | None, inner: int, inner_param: float, act: int,
    act_param: float, of_batch: bool, need_dx: bool, need_dresidual: bool, need_dnorm: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[host.Launch]]:  # fmt: skip
    """Plan of ``tail_gradient``: dx, gradient of the residual, dweight, dbias; and the launches.

    Args:
        dy: as in ``tail_reduce``, like all but the following.
        x: as above.
        residual: as above.
        mask: as above.
        numbers: as above.
        gate: as above.
        sums: of ``tail_reduce``, where they are needed.
        means: of ``tail_squeeze``, where it gives them.
        dpooled: gradient of what was pooled, (N, C) accumulators, or None.
        weight: the norm's, or None.
        lost: (2, C) accumulators, constant and slope of what all positions of a channel lose; None
            for what follows from the sums.
        inner: as above.
        inner_param: as above.
        act: as above.
        act_param: as above.
        of_batch: whether the statistics are the batch's.
        need_dx: whether dx is wanted.
        need_dresidual: the same of the residual's.
        need_dnorm: the same of those of weight and bias.

    Returns:
        Gradients; shape (0,) where not needed.
    """
    if sums is None and ((of_batch and lost is None) or need_dnorm):
        raise RuntimeError("chattn_cuda::tail: sums are missing")
    if dpooled is not None and sums is not None and means is None and inner == _IDENTITY:
        raise RuntimeError("chattn_cuda::tail: means are missing")
    channels_last = host.is_channels_last(x)
    n, c, hw, _ = host.shape_of(x, channels_last)
    dx, dresidual = (
        host.empty_map(x, channels_last) if needed else x.new_empty((0,))
        for needed in (need_dx, need_dresidual)
    )
    like = x if weight is None else weight
    new = like.new_zeros if n == 0 else like.new_empty
    dweight, dbias = (new((c if need_dnorm else 0,)) for _ in range(2))
    launches: list[host.Launch] = []
    if n == 0:
        return (dx, dresidual, dweight, dbias), launches
    found = numbers.new_empty((2, c)) if of_batch and need_dx and lost is None else None
    if need_dnorm or found is not None:
        of_norm = (dweight, dbias) if need_dnorm else (None, None)
        rows = 2 if inner == _IDENTITY else 5
        sizes = (n, c, hw, rows, _SAMPLES, _COLUMNS)
        norm = (sums, means, dpooled, gate, numbers, *of_norm, found, *sizes)
        launches.append(host.Launch(kernels.tail_norm_kernel, -(-c // _COLUMNS), norm))
    if found is not None:
        lost = found
    if need_dx or need_dresidual:
        kept = _kept(x, residual, act, mask)
        tiles = _tiles(inner, act, 2 + (kept is not None))
        p = _plan(x, channels_last, tiles, mask is not None)
        wanted = (dx if need_dx else None, dresidual if need_dresidual else None)
        maps: tuple[Any, ...] = (
            (dy, x, kept), mask, numbers, gate, dpooled, lost, wanted, *host.sizes(p, n), hw,
            (inner, inner_param, act, act_param), *host.constants(p),
        )  # fmt: skip
        launches.append(host.Launch(kernels.tail_gradient_kernel, p.programs, maps))
    return (dx, dresidual, dweight, dbias), launches


tail_squeeze = Operator(squeeze_launches, maps=("x",), like="x")
tail_apply = Operator(apply_launches, maps=("x", "residual"), like="x")
tail_reduce = Operator(reduce_launches, maps=("dy", "x", "residual"), like="x")
tail_gradient = Operator(gradient_launches, maps=("dy", "x", "residual"), like="x")
