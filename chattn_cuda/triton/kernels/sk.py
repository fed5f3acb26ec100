"""The softmax over the branches of a selective kernel, and its gradient."""

# mypy: ignore-errors
# (Triton compiles these functions; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

from .activations import exp
from .elements import spread
from .parts import merge_sum
from .passes import (
    SIZES,
    channels_and_length,
    emit_tile,
    last_first,
    load_rows,
    locate,
    maximum,
)


@triton.jit(do_not_specialize=("planes", "hw", "parts"))
def mean_kernel(part_sum, pooled, planes, hw, parts, TP: tl.constexpr):
    """Pooled = merged part_sum / HW, for (N, C) planes."""
    i = tl.program_id(0).to(tl.int64) * TP + tl.arange(0, TP)
    mask = i < planes
    tl.store(pooled + i, merge_sum(part_sum, i, mask, parts, planes) / hw, mask=mask)


@triton.jit
def softmax_tiles(logits, where, mask, C, M: tl.constexpr):
    """M tiles: the softmax over the M rows of logits, C apart, behind ``where``."""
    top = tl.load(logits + where, mask=mask, other=0.0)
    for m in tl.static_range(1, M):
        top = maximum(tl.load(logits + where + m * C, mask=mask, other=0.0), top)
    exps = ()
    total = tl.zeros_like(top)
    for m in tl.static_range(M):
        e = exp(tl.load(logits + where + m * C, mask=mask, other=0.0) - top)
        total += e
        exps = exps + (e,)
    gates = ()
    for m in tl.static_range(M):
        gates = gates + (exps[m] / total,)
    return gates


@triton.jit(do_not_specialize=SIZES)
def select_kernel(
    xs,
    prologue,
    y,
    logits,
    n_size,
    mid_size,
    inner_units,
    steps,
    c_tiles,
    splits,
    M: tl.constexpr,
    EMIT: tl.constexpr,
    CONSTANTS: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
):
    """Y by EMIT, whose numbers are the softmax over the branches and the prologue's rows."""
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    N = tl.cast(n_size, tl.int64)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    where = n[:, None] * M * C + c[None, :]
    mask = (n < N)[:, None] & (c < C)[None, :]
    gates = softmax_tiles(logits, where, mask, C, M)
    numbers = gates + load_rows(prologue, ROWS, c, C)
    emit_tile(
        xs, numbers, (y,), n, c, split, steps, n_size, C, L, EMIT, CL, TN, TC, TL, CONSTANTS
    )  # fmt: skip


@triton.jit(do_not_specialize=("n_size", "c_size", "parts"))
def logit_gradient_kernel(
    part_ds, logits, dlogits, n_size, c_size, parts, M: tl.constexpr, TP: tl.constexpr
):
    """Dlogits_m = gate_m (ds_m - sum_k gate_k ds_k), with ds_m merged from (M, parts, N, C)."""
    C = tl.cast(c_size, tl.int64)
    planes = tl.cast(n_size, tl.int64) * C
    i = tl.program_id(0).to(tl.int64) * TP + tl.arange(0, TP)
    mask = i < planes
    where = i // C * M * C + i % C
    gates = softmax_tiles(logits, where, mask, C, M)
    total = tl.zeros([TP], logits.dtype.element_ty)
    dots = ()
    for m in tl.static_range(M):
        ds = merge_sum(part_ds + m * parts * planes, i, mask, parts, planes)
        total += gates[m] * ds
        dots = dots + (ds,)
    for m in tl.static_range(M):
        tl.store(dlogits + where + m * C, gates[m] * (dots[m] - total), mask=mask)


@triton.jit(do_not_specialize=(*SIZES, "hw"))
def select_spread_kernel(
    dy,
    logits,
    dpooled,
    dxs,
    n_size,
    mid_size,
    inner_units,
    steps,
    c_tiles,
    splits,
    hw,
    M: tl.constexpr,
    ALIGN: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
):
    """Dx_m = dy gate_m + dpooled / HW, with gate as in the forward; dpooled may be None."""
    ACC: tl.constexpr = logits.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    N = tl.cast(n_size, tl.int64)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    mask = (n < N)[:, None] & (c < C)[None, :]
    gates = softmax_tiles(logits, n[:, None] * M * C + c[None, :], mask, C, M)
    shift = tl.zeros([TN, TC], ACC)
    if dpooled is not None:
        shift += tl.load(dpooled + (n[:, None] * C + c[None, :]), mask=mask, other=0.0) / hw
    numbers = gates + (shift,)
    emit_tile((dy,), numbers, dxs, n, c, split, steps, n_size, C, L, spread, CL, TN, TC, TL)
