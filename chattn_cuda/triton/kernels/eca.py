"""The gate of efficient channel attention, a convolution over channels, and its gradients.

A gate depends on k neighbouring channels: its program merges the partial results of those where it
needs them. Weights are (k) or, with PER_CHANNEL, (C, k).
"""

# mypy: ignore-errors
# (Triton compiles these functions; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate, gate_gradient, to_storage
from .elements import spread, weigh
from .parts import load_weight, merge_sum
from .passes import SIZES, channels_and_length, emit_tile, last_first, locate

_CONV_SIZES = ("hw", "parts", "taps")


@triton.jit
def neighbour(c, shift, C, CIRCULAR: tl.constexpr):
    """Channels c + shift, and which of them there are."""
    there = c + shift
    if CIRCULAR:
        there = tl.where(there < 0, there + C, tl.where(there < C, there, there - C))
    return there, (c < C) & (there >= 0) & (there < C)


@triton.jit
def tap(weight, c, j, taps, mask, PER_CHANNEL: tl.constexpr, ACC: tl.constexpr):
    """Weight j of channels c: [TC], or one for all."""
    if PER_CHANNEL:
        return load_weight(weight, c * taps + j, mask, ACC)[None, :]
    else:
        return tl.load(weight + j).to(ACC)


@triton.jit
def merged_gate_gradient(part_ds, dgate, gate, where, mask, parts, stride, GATE: tl.constexpr):
    """(merged ds + dgate) gate_fn': the gradient before the gate function."""
    ds = merge_sum(part_ds, where, mask, parts, stride)
    if dgate is not None:
        ds += tl.load(dgate + where, mask=mask, other=0.0)
    return gate_gradient(tl.load(gate + where, mask=mask, other=0.0), ds, GATE)


@triton.jit(do_not_specialize=(*SIZES, *_CONV_SIZES))
def conv_rescale_kernel(
    x,
    y,
    part_sum,
    weight,
    pooled,
    gate,
    n_size,
    mid_size,
    inner_units,
    steps,
    c_tiles,
    splits,
    hw,
    parts,
    taps,
    PER_CHANNEL: tl.constexpr,
    CIRCULAR: tl.constexpr,
    GATE: tl.constexpr,
    ALIGN: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
):
    """Gate = gate_fn(weight * mean), stored once like the mean, and y = gate * x."""
    ACC: tl.constexpr = gate.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    N = tl.cast(n_size, tl.int64)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    rows = (n < N)[:, None]
    z = tl.zeros([TN, TC], ACC)
    for j in range(0, taps):
        there, exists = neighbour(c, j - taps // 2, C, CIRCULAR)
        where = n[:, None] * C + there[None, :]
        p = merge_sum(part_sum, where, rows & exists[None, :], parts, N * C) / hw
        z += p * tap(weight, c, j, taps, c < C, PER_CHANNEL, ACC)
    s = activate(z, GATE, 0.0)
    where = n[:, None] * C + c[None, :]
    mask = rows & (c < C)[None, :]
    p = merge_sum(part_sum, where, mask, parts, N * C) / hw
    tl.store(pooled + where, p, mask=mask & (split == 0))
    tl.store(gate + where, s, mask=mask & (split == 0))
    emit_tile((x,), (s,), (y,), n, c, split, steps, n_size, C, L, weigh, CL, TN, TC, TL)


@triton.jit(do_not_specialize=(*SIZES, *_CONV_SIZES))
def conv_spread_kernel(
    dy,
    part_ds,
    dgate,
    gate,
    weight,
    dx,
    n_size,
    mid_size,
    inner_units,
    steps,
    c_tiles,
    splits,
    hw,
    parts,
    taps,
    PER_CHANNEL: tl.constexpr,
    CIRCULAR: tl.constexpr,
    GATE: tl.constexpr,
    ALIGN: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
):
    """Dx = dy gate + dp / HW, with dp the transposed convolution of the gate's gradient."""
    ACC: tl.constexpr = gate.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    N = tl.cast(n_size, tl.int64)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    rows = (n < N)[:, None]
    dp = tl.zeros([TN, TC], ACC)
    for j in range(0, taps):
        there, exists = neighbour(c, taps // 2 - j, C, CIRCULAR)
        where = n[:, None] * C + there[None, :]
        dz = merged_gate_gradient(
            part_ds, dgate, gate, where, rows & exists[None, :], parts, N * C, GATE
        )
        dp += dz * tap(weight, there, j, taps, exists, PER_CHANNEL, ACC)
    mask = rows & (c < C)[None, :]
    s = tl.load(gate + (n[:, None] * C + c[None, :]), mask=mask, other=0.0)
    emit_tile((dy,), (s, dp / hw), (dx,), n, c, split, steps, n_size, C, L, spread, CL, TN, TC, TL)


@triton.jit(do_not_specialize=("n_size", "c_size", "rows", "parts", "taps"))
def conv_dweight_kernel(
    part_ds,
    dgate,
    gate,
    pooled,
    part_dw,
    n_size,
    c_size,
    rows,
    parts,
    taps,
    PER_CHANNEL: tl.constexpr,
    CIRCULAR: tl.constexpr,
    GATE: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
):
    """Partial weight gradients: sums of dz[n, c] pooled[n, c + j - k // 2] over ``rows`` samples.

    Grid: splits of the samples x channel tiles x taps (fastest). part_dw: (splits, C, k) with
    PER_CHANNEL, else (splits * channel tiles, k).
    """
    ACC: tl.constexpr = gate.dtype.element_ty
    N, C = tl.cast(n_size, tl.int64), tl.cast(c_size, tl.int64)
    j = tl.program_id(0) % taps
    tile = tl.program_id(0) // taps  # split, channel tile
    c_tiles = tl.cdiv(c_size, TC)
    c = (tile % c_tiles).to(tl.int64) * TC + tl.arange(0, TC)
    there, exists = neighbour(c, j - taps // 2, C, CIRCULAR)
    split = tile // c_tiles
    total = tl.zeros([TN, TC], ACC)
    for start in range(split * rows, tl.minimum((split + 1) * rows, n_size), TN):
        n = tl.cast(start, tl.int64) + tl.arange(0, TN)
        mask = (n < tl.minimum((split + 1) * rows, n_size))[:, None] & exists[None, :]
        dz = merged_gate_gradient(
            part_ds, dgate, gate, n[:, None] * C + c[None, :], mask, parts, N * C, GATE
        )
        p = tl.load(pooled + (n[:, None] * C + there[None, :]), mask=mask, other=0.0)
        total += dz * p
    sums = tl.sum(total, axis=0)
    if PER_CHANNEL:
        tl.store(part_dw + ((split * C + c) * taps + j), sums, mask=c < C)
    else:
        tl.store(part_dw + (tile * taps + j), tl.sum(sums, axis=0))


@triton.jit(do_not_specialize=("parts", "count"))
def merge_weights_kernel(part_dw, dweight, parts, count, TP: tl.constexpr, TW: tl.constexpr):
    """Dweight = sum of the partial gradients (parts, count)."""
    i = tl.program_id(0).to(tl.int64) * TW + tl.arange(0, TW)
    total = tl.zeros([TP, TW], part_dw.dtype.element_ty)
    for start in range(0, parts, TP):
        q = tl.cast(start, tl.int64) + tl.arange(0, TP)
        mask = (q < parts)[:, None] & (i < count)[None, :]
        total += tl.load(part_dw + (q[:, None] * count + i[None, :]), mask=mask, other=0.0)
    merged = to_storage(tl.sum(total, axis=0), dweight.dtype.element_ty)
    tl.store(dweight + i, merged, mask=i < count)
