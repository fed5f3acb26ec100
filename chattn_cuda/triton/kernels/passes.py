"""The four passes over feature maps, for any gate and for M >= 1 maps, in both memory formats.

| pass | reads | writes |
|---|---|---|
| ``squeeze_kernel`` | every map once | partial sums per (n, c) |
| ``rescale_tile`` | every map once | y = sum_m gate_m * x_m, once |
| ``reduce_kernel`` | dy and every map once | partial sums of dy * x_m per (n, c) |
| ``spread_tile`` | dy once | dx_m = gate_m * dy + dp / HW, once |

The reductions are whole kernels. The other two are functions that a block calls from its own kernel
with the gate tile that it has just computed in registers: that saves a launch and a round trip.

A map is (N, C, L) with L = H * W. One program works on a tile of TN samples x TC channels and walks
over L in steps of TL. In registers the tile is [TN, TC, TL] for NCHW and [TN, TL, TC] for
channels_last, so that the last axis is the contiguous one in memory in both. The length of that
axis comes as ``units * ALIGN`` with ALIGN a compile-time power of two: Triton then knows that rows
are aligned and uses 128-bit accesses. Offsets are 64-bit.

Partial results are laid out (splits, N, C), or (M, splits, N, C): the splits of L are merged, in
order, by the gate's kernel. Nothing is atomic, so results depend on the shape alone.
"""

# mypy: ignore-errors
# (Triton compiles these functions; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

from .activations import to_storage

# Sizes that vary from call to call: specialising on their values would only recompile.
SIZES = ("n_size", "mid_size", "inner_units", "steps", "c_tiles", "splits")


@triton.jit
def channels_and_length(mid_size, inner_units, ALIGN: tl.constexpr, CL: tl.constexpr):
    """C and L, from the sizes of the middle and the contiguous axis."""
    mid = tl.cast(mid_size, tl.int64)
    inner = tl.cast(inner_units, tl.int64) * ALIGN
    if CL:
        return inner, mid
    else:
        return mid, inner


@triton.jit
def locate(pid, c_tiles, splits, TN: tl.constexpr, TC: tl.constexpr, CL: tl.constexpr):
    """The program's samples [TN], channels [TC] and split; neighbours are neighbours in memory."""
    pid = pid.to(tl.int64)
    if CL:
        c_tile = pid % c_tiles
        split = (pid // c_tiles) % splits
    else:
        split = pid % splits
        c_tile = (pid // splits) % c_tiles
    n_tile = pid // c_tiles // splits
    return n_tile * TN + tl.arange(0, TN), c_tile * TC + tl.arange(0, TC), split


@triton.jit
def last_first():
    """Program index in reverse.

    A pass that reads a map for the second time begins where the first ended: that part is still in
    the L2 cache.
    """
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit
def step_range(split, steps, L, TL: tl.constexpr):
    """The steps of TL that belong to this split."""
    return split * steps, tl.minimum((split + 1) * steps, tl.cdiv(L, TL))


@triton.jit
def offsets(n, c, pos, C, L, CL: tl.constexpr):
    """Element offsets of a tile, in its register order."""
    if CL:
        return (n[:, None, None] * L + pos[None, :, None]) * C + c[None, None, :]
    else:
        return (n[:, None, None] * C + c[None, :, None]) * L + pos[None, None, :]


@triton.jit
def inside(n, c, pos, N, C, L, CL: tl.constexpr):
    """Which elements of a tile exist."""
    if CL:
        return (n < N)[:, None, None] & (pos < L)[None, :, None] & (c < C)[None, None, :]
    else:
        return (n < N)[:, None, None] & (c < C)[None, :, None] & (pos < L)[None, None, :]


@triton.jit
def over_length(v, CL: tl.constexpr):
    """A per-(n, c) tile [TN, TC], to be broadcast over L."""
    if CL:
        return v[:, None, :]
    else:
        return v[:, :, None]


@triton.jit
def sum_length(v, CL: tl.constexpr):
    """Sum of a tile over L: [TN, TC]."""
    if CL:
        return tl.sum(v, axis=1)
    else:
        return tl.sum(v, axis=2)


@triton.jit
def maximum(a, b):
    """Elementwise maximum that propagates NaN."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def zero_tile(
    TN: tl.constexpr, TC: tl.constexpr, TL: tl.constexpr, CL: tl.constexpr, ACC: tl.constexpr
):
    """A tile of zeros, in register order."""
    if CL:
        return tl.zeros([TN, TL, TC], ACC)
    else:
        return tl.zeros([TN, TC, TL], ACC)


@triton.jit
def load_map(x, offs, mask, ACC: tl.constexpr):
    """Elements of a map in the accumulation type: the one place where maps are read."""
    return tl.load(x + offs, mask=mask, other=0.0).to(ACC)


@triton.jit
def load_branch(
    x, prologue, row, c, offs, mask, exists, C, M: tl.constexpr, CL: tl.constexpr, ACC: tl.constexpr
):
    """Branch ``row`` of M, through its prologue: relu(scale x + shift), zero outside of the map.

    prologue: (2, M, C), scale and shift, or None; exists: the channels [TC] of the map.
    """
    v = load_map(x, offs, mask, ACC)
    if prologue is not None:
        scale = tl.load(prologue + row * C + c, mask=exists, other=0.0)[None, :]
        shift = tl.load(prologue + (M + row) * C + c, mask=exists, other=0.0)[None, :]
        v = maximum(v * over_length(scale, CL) + over_length(shift, CL), 0.0)
        v = tl.where(mask, v, 0.0)
    return v


@triton.jit
def store_map(y, offs, mask, v):
    """Round once and store: the one place where maps are written."""
    tl.store(y + offs, to_storage(v, y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def squeeze_kernel(
    xs,
    prologue,
    part_sum,
    n_size,
    mid_size,
    inner_units,
    steps,
    c_tiles,
    splits,
    ALIGN: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
):
    """part_sum[split, n, c] = sum over maps and over the split of L.

    xs: tuple of maps; prologue: as in `load_branch`. Grid: sample tiles x channel tiles x splits.
    """
    ACC: tl.constexpr = part_sum.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    n, c, split = locate(tl.program_id(0), c_tiles, splits, TN, TC, CL)
    total = zero_tile(TN, TC, TL, CL, ACC)
    begin, end = step_range(split, steps, L, TL)
    for step in range(begin, end):
        pos = step * TL + tl.arange(0, TL)
        offs = offsets(n, c, pos, C, L, CL)
        mask = inside(n, c, pos, n_size, C, L, CL)
        for m in tl.static_range(len(xs)):
            total += load_branch(xs[m], prologue, m, c, offs, mask, c < C, C, len(xs), CL, ACC)
    where = (split * n_size + n)[:, None] * C + c[None, :]
    exists = (n < n_size)[:, None] & (c < C)[None, :]
    tl.store(part_sum + where, sum_length(total, CL), mask=exists)


@triton.jit
def _zero_tiles(
    xs,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
    CL: tl.constexpr,
    ACC: tl.constexpr,
):
    tiles = ()
    for _ in tl.static_range(len(xs)):
        tiles = tiles + (zero_tile(TN, TC, TL, CL, ACC),)
    return tiles


@triton.jit
def _add_products(tiles, g, xs, offs, mask, ACC: tl.constexpr):
    added = ()
    for m in tl.static_range(len(xs)):
        added = added + (tiles[m] + g * load_map(xs[m], offs, mask, ACC),)
    return added


@triton.jit(do_not_specialize=SIZES)
def reduce_kernel(
    dy,
    xs,
    parts,
    n_size,
    mid_size,
    inner_units,
    steps,
    c_tiles,
    splits,
    ALIGN: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
):
    """parts[m, split, n, c] = sum over the split of dy * x_m; dy is read once for all m."""
    ACC: tl.constexpr = parts.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    n, c, split = locate(tl.program_id(0), c_tiles, splits, TN, TC, CL)
    exists = (n < n_size)[:, None] & (c < C)[None, :]
    totals = _zero_tiles(xs, TN, TC, TL, CL, ACC)
    begin, end = step_range(split, steps, L, TL)
    for step in range(begin, end):
        pos = step * TL + tl.arange(0, TL)
        offs = offsets(n, c, pos, C, L, CL)
        mask = inside(n, c, pos, n_size, C, L, CL)
        g = load_map(dy, offs, mask, ACC)
        totals = _add_products(totals, g, xs, offs, mask, ACC)
    where = (split * n_size + n)[:, None] * C + c[None, :]
    for m in tl.static_range(len(xs)):
        plane = parts + m * splits * n_size * C
        tl.store(plane + where, sum_length(totals[m], CL), mask=exists)


@triton.jit
def rescale_tile(
    xs,
    prologue,
    gates,
    y,
    n,
    c,
    split,
    steps,
    n_size,
    C,
    L,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
):
    """Y = sum_m gates[m] * xs[m] over one split of L. gates: tuple of [TN, TC] tiles.

    prologue: as in `load_branch`.
    """
    ACC: tl.constexpr = gates[0].dtype
    begin, end = step_range(split, steps, L, TL)
    for step in range(begin, end):
        pos = step * TL + tl.arange(0, TL)
        offs = offsets(n, c, pos, C, L, CL)
        mask = inside(n, c, pos, n_size, C, L, CL)
        v = zero_tile(TN, TC, TL, CL, ACC)
        for m in tl.static_range(len(xs)):
            x = load_branch(xs[m], prologue, m, c, offs, mask, c < C, C, len(xs), CL, ACC)
            v += x * over_length(gates[m], CL)
        store_map(y, offs, mask, v)


@triton.jit
def spread_tile(
    dy,
    gates,
    shift,
    dxs,
    n,
    c,
    split,
    steps,
    n_size,
    C,
    L,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
):
    """dxs[m] = dy * gates[m] + shift over one split of L; dy is read once for all m.

    gates: tuple of [TN, TC] tiles; shift: [TN, TC].
    """
    ACC: tl.constexpr = shift.dtype
    begin, end = step_range(split, steps, L, TL)
    for step in range(begin, end):
        pos = step * TL + tl.arange(0, TL)
        offs = offsets(n, c, pos, C, L, CL)
        mask = inside(n, c, pos, n_size, C, L, CL)
        g = load_map(dy, offs, mask, ACC)
        for m in tl.static_range(len(dxs)):
            v = g * over_length(gates[m], CL) + over_length(shift, CL)
            store_map(dxs[m], offs, mask, v)
