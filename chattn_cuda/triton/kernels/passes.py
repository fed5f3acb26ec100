"""The two ways over feature maps, for any number of them, in both memory formats.

| pass | reads | writes |
|---|---|---|
| ``fold_kernel`` | every map once | numbers per (n, c), in parts |
| ``emit_tile`` | every map once | every output once, of the maps and of numbers per (n, c) |

What they do to the values of one position is an element function (`elements`), a compile-time
argument. A fold is a whole kernel. An emit is a function that a block calls from its own kernel
with the gate tile that it has just computed in registers: that saves a launch and a round trip.

A map is (N, C, L) with L = H * W. One program works on a tile of TN samples x TC channels and walks
over L in steps of TL. In registers the tile is [TN, TC, TL] for NCHW and [TN, TL, TC] for
channels_last, so that the last axis is the contiguous one in memory in both. The length of that
axis comes as ``units * ALIGN`` with ALIGN a compile-time power of two: Triton then knows that rows
are aligned and uses 128-bit accesses. Offsets are 64-bit.

Partial results are laid out (states, splits, N, C): the splits of L are merged, in order, by the
gate's kernel. Nothing is atomic, so results depend on the shape alone.

Beside maps of numbers there are maps of bits: rows along the contiguous axis, each of which begins
with a byte of its own. A tile is at least eight long there, so that a byte belongs to one program.
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
def read(x, at, ACC: tl.constexpr):
    """A tile of a map in the accumulation type, 0 outside of it: the one place where maps are read.

    x: None for a map of zeros; at: the tile's offsets, and which of its elements exist.
    """
    if x is None:
        return tl.zeros(at[0].shape, ACC)
    else:
        return tl.load(x + at[0], mask=at[1], other=0.0).to(ACC)


@triton.jit
def first_values(x, n, c, N, C, L, CL: tl.constexpr, ACC: tl.constexpr):
    """The values of a map where its planes begin, to be broadcast over L."""
    if CL:
        offs = n[:, None] * L * C + c[None, :]
    else:
        offs = (n[:, None] * C + c[None, :]) * L
    exists = (n < N)[:, None] & (c < C)[None, :]
    return over_length(read(x, (offs, exists), ACC), CL)


@triton.jit
def store_map(y, offs, mask, v):
    """Round once and store: the one place where maps are written."""
    tl.store(y + offs, to_storage(v, y.dtype.element_ty), mask=mask)


@triton.jit
def bytes_of_tile(
    n, c, step, N, C, L,
    CL: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    """Offsets of a tile's bytes in a map of bits, which of them exist, and which bit is which."""
    if CL:
        pos = step * TL + tl.arange(0, TL)
        eighth, eighths = tl.min(tl.reshape(c, [TC // 8, 8]), axis=1) // 8, tl.cdiv(C, 8)
        offs = offsets(n, eighth, pos, eighths, L, CL)
        exists = inside(n, eighth, pos, N, eighths, L, CL)
    else:
        eighth, eighths = step * (TL // 8) + tl.arange(0, TL // 8), tl.cdiv(L, 8)
        offs = offsets(n, c, eighth, C, eighths, CL)
        exists = inside(n, c, eighth, N, C, eighths, CL)
    return offs, exists, tl.arange(0, 8)[None, None, None, :]


@triton.jit
def read_bits(bits, place, SHAPE: tl.constexpr):
    """A tile [SHAPE] of a map of bits, of which ``place`` is `bytes_of_tile`."""
    eights = tl.load(bits + place[0], mask=place[1], other=0)
    return tl.reshape((eights[:, :, :, None] >> place[2]) & 1, SHAPE) != 0


@triton.jit
def store_bits(bits, place, v):
    """The same way back."""
    eights = tl.reshape(v.to(tl.int32), [v.shape[0], v.shape[1], v.shape[2] // 8, 8])
    tl.store(bits + place[0], tl.sum(eights << place[2], axis=3).to(tl.uint8), mask=place[1])


@triton.jit
def load_rows(numbers, ROWS: tl.constexpr, c, C):
    """Rows of numbers per channel, (ROWS, C), as a tuple of [1, TC]; numbers: None for no rows."""
    rows = ()
    for q in tl.static_range(ROWS):
        rows = rows + (tl.load(numbers + q * C + c, mask=c < C, other=0.0)[None, :],)
    return rows


@triton.jit
def load_planes(numbers, n, c, N, C, otherwise: tl.constexpr, ACC: tl.constexpr):
    """Numbers per (n, c) as a tile [TN, TC]; numbers: None for those that are all the same."""
    if numbers is None:
        return tl.full([n.shape[0], c.shape[0]], otherwise, ACC)
    else:
        exists = (n < N)[:, None] & (c < C)[None, :]
        return tl.load(numbers + (n[:, None] * C + c[None, :]), mask=exists, other=0.0).to(ACC)


@triton.jit
def all_over_length(numbers, CL: tl.constexpr):
    """`over_length` of each."""
    tiles = ()
    for q in tl.static_range(len(numbers)):
        tiles = tiles + (over_length(numbers[q], CL),)
    return tiles


@triton.jit(do_not_specialize=SIZES)
def fold_kernel(
    xs,
    bits,
    numbers,
    planes,
    parts,
    n_size,
    mid_size,
    inner_units,
    steps,
    c_tiles,
    splits,
    FOLD: tl.constexpr,
    MERGE: tl.constexpr,
    CONSTANTS: tl.constexpr,
    STATES: tl.constexpr,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
):
    """parts[k, split, n, c] = state k of the fold over the maps and the split of L.

    xs: tuple of maps; bits: a map of bits or None, which the element function gets behind the place
    in the maps; numbers: (ROWS, C) or None; planes: behind them a number per (n, c), (N, C), or
    None for 1. FIRST: whether state 0 is the first map's value where the plane begins. Grid: sample
    tiles x channel tiles x splits.
    """
    ACC: tl.constexpr = parts.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    n, c, split = locate(tl.program_id(0), c_tiles, splits, TN, TC, CL)
    of_planes = (load_planes(planes, n, c, n_size, C, 1.0, ACC),)
    rows = all_over_length(load_rows(numbers, ROWS, c, C) + of_planes, CL)
    state = ()
    if FIRST:
        state = state + (first_values(xs[0], n, c, n_size, C, L, CL, ACC),)
    for _ in tl.static_range(STATES - FIRST):
        state = state + (zero_tile(TN, TC, TL, CL, ACC),)
    begin, end = step_range(split, steps, L, TL)
    for step in range(begin, end):
        pos = step * TL + tl.arange(0, TL)
        offs = offsets(n, c, pos, C, L, CL)
        at = offs, inside(n, c, pos, n_size, C, L, CL)
        if bits is not None:
            place = bytes_of_tile(n, c, step, n_size, C, L, CL, TN, TC, TL)
            at = at + (read_bits(bits, place, offs.shape),)
        state = FOLD(state, xs, rows, at, CONSTANTS)
    where = (split * n_size + n)[:, None] * C + c[None, :]
    exists = (n < n_size)[:, None] & (c < C)[None, :]
    for k in tl.static_range(STATES):
        merged = MERGE(state, k, CL)  # stored at once: all together they may not fit in registers
        tl.store(parts + k * splits * n_size * C + where, merged, mask=exists)


@triton.jit
def emit_tile(
    xs,
    numbers,
    ys,
    n,
    c,
    split,
    steps,
    n_size,
    C,
    L,
    EMIT: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
    CONSTANTS: tl.constexpr = None,
    bits=None,
    new_bits=None,
):
    """Ys = what EMIT makes of the maps xs over one split of L; each is read once.

    numbers: tuple of [TN, TC] or [1, TC] tiles, of which the first has the accumulation type; ys:
    None for what is not wanted; bits: as in `fold_kernel`; new_bits: a map of bits, which EMIT
    makes behind the others, or None; bits of positions that do not exist are 0.
    """
    tiles = all_over_length(numbers, CL)
    begin, end = step_range(split, steps, L, TL)
    for step in range(begin, end):
        pos = step * TL + tl.arange(0, TL)
        offs = offsets(n, c, pos, C, L, CL)
        mask = inside(n, c, pos, n_size, C, L, CL)
        at = offs, mask
        if bits is not None:
            place = bytes_of_tile(n, c, step, n_size, C, L, CL, TN, TC, TL)
            at = at + (read_bits(bits, place, offs.shape),)
        made = EMIT(xs, tiles, at, CONSTANTS)
        for o in tl.static_range(len(ys)):
            if ys[o] is not None:
                store_map(ys[o], offs, mask, made[o])
        if new_bits is not None:
            place = bytes_of_tile(n, c, step, n_size, C, L, CL, TN, TC, TL)
            store_bits(new_bits, place, made[len(ys)] & mask)
