"""Launch plans of the Triton kernels: tile sizes and grids, from shapes alone.

There is no autotuning. A plan is a pure function of the shape, the element size and the layout, so
the order of every sum, and with it every bit of the result, is the same in each run and on every
GPU of one architecture. Nothing here imports triton or torch.

What the numbers below come from:

- A thread's share of a tile stays in registers. 4096 float32 elements are 32 registers for each of
  the 128 threads of a program: a pass that keeps one tile (an accumulator, or a loaded tile) gets
  4096, one that keeps two gets half, and float64 half of that again. Rows whose length forbids
  128-bit accesses get half too: more addresses per element. So do the gate's three-dimensional
  tiles, which have their operands beside them. The test that compiles them finds no spills.
- Elements that adjacent threads touch are adjacent: up to 1024 along L for NCHW; for channels_last
  256 bytes of channels (two cache lines), because the channels of the next position follow C away.
- ``FILL`` programs give each of a large GPU's 132-148 multiprocessors about eight; while a grid is
  smaller, tiles shrink, down to 1024 elements, and then L is split.
"""

from __future__ import annotations

from dataclasses import dataclass

WARPS = 4
FILL = 1024
_MAX_TILE = 4096
_MAX_GATE_TILE = 2048
_MIN_TILE = 1024
_VECTOR_BYTES = 16
_MAX_ROW = 1024
_SEGMENT_BYTES = 256
# The gate's kernel merges the partial sums of the splits one after the other.
_MAX_SPLITS = 32
UNLIMITED = 1 << 62  # for passes that leave no partial sums
# Bounds of the gate's tiles: rows that share a weight tile, and length of a weight row's piece.
_MAX_GATE_ROWS = 256
_MAX_K = 64
# Length of a row's piece where the product is a launch of its own: every piece is a round trip to
# memory, one after the other, so few long ones.
_MAX_DEPTH = 512


def _pow2_at_least(v: int) -> int:
    return 1 << max(v - 1, 0).bit_length()


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def alignment(length: int) -> int:
    """Largest power of two, up to 16, that divides ``length``."""
    return min(length & -length, 16)


@dataclass(frozen=True)
class PassPlan:
    """How one pass covers an (N, C, L) map.

    ``tile_n`` x ``tile_c`` x ``tile_l`` elements at a time, ``steps`` times along L; the grid is
    sample tiles x ``c_tiles`` x ``splits`` = ``programs``. ``mid`` and ``units * align`` are the
    lengths of the middle and of the contiguous axis. ``tile_k`` is for gates computed in the pass.
    """

    tile_n: int
    tile_c: int
    tile_l: int
    tile_k: int
    steps: int
    splits: int
    c_tiles: int
    programs: int
    mid: int
    units: int
    align: int
    channels_last: bool


@dataclass(frozen=True)
class MlpPlan:
    """Tiles of one small matrix product: ``tile_n`` rows x ``tile_r`` columns, ``tile_k`` deep."""

    tile_n: int
    tile_r: int
    tile_k: int
    programs: int


def plan_pass(
    n: int,
    c: int,
    length: int,
    channels_last: bool,
    itemsize: int,
    tiles: int = 1,
    max_splits: int = _MAX_SPLITS,
    hidden: int = 0,
    fill: int = FILL,
    least: int = 1,
) -> PassPlan:
    """Plan a pass over an (n, c, length) map.

    Args:
        n: samples, >= 1.
        c: channels, >= 1.
        length: positions H * W, >= 1.
        channels_last: whether channels are the contiguous axis.
        itemsize: bytes per element of the map (8 means that sums are float64).
        tiles: how many tiles the pass keeps in registers.
        max_splits: limit of the splits of L; for passes that leave partial sums.
        hidden: hidden size of the gate that the pass computes, 0 if it computes none.
        fill: how many programs to aim at.
        least: length of a tile's contiguous axis, at least; a power of two, up to 32.
    """
    wide = 2 if itemsize == 8 else 1
    mid, inner = (length, c) if channels_last else (c, length)
    align = alignment(inner)
    narrow = 2 if align * itemsize < _VECTOR_BYTES else 1
    budget = max(_MAX_TILE // (tiles * wide * narrow), 256)
    floor = min(_MIN_TILE, budget)
    if channels_last:
        tile_c = max(min(_pow2_at_least(c), _SEGMENT_BYTES // itemsize), least)
        tile_l = min(_pow2_at_least(length), budget // tile_c)
    else:
        tile_l = max(min(_pow2_at_least(length), _MAX_ROW, budget), least)
        tile_c = min(_pow2_at_least(c), budget // tile_l)
    tile_n = 1
    if hidden:
        # A program reads tile_c rows of the weights for tile_n samples of the map: enough samples
        # that the weights are at most a quarter of the traffic.
        wanted = min(_pow2_at_least(_cdiv(8 * hidden, length * itemsize)), _pow2_at_least(n), 16)
        tile_n = min(wanted, budget)
        least = 4 if channels_last else 64 // itemsize  # two sectors of a row
        while tile_n * tile_c * tile_l > budget:
            if tile_l > least and (channels_last or tile_c <= 8):
                tile_l //= 2
            elif tile_c > 8:
                tile_c //= 2
            else:
                tile_n //= 2
    # Short maps leave room in the tile.
    tile_n = min(max(tile_n, budget // (tile_c * tile_l)), _pow2_at_least(n))
    if hidden:
        while tile_n * tile_c > _MAX_GATE_ROWS // wide:
            if tile_n > tile_c or tile_c <= 32:
                tile_n //= 2
            else:
                tile_c //= 2

    def programs() -> int:
        return _cdiv(n, tile_n) * _cdiv(c, tile_c)

    while programs() < fill and tile_n * tile_c * tile_l > floor:
        if tile_n > 1:
            tile_n //= 2
        elif not channels_last and tile_c > 1:
            tile_c //= 2
        elif tile_l == 1 or programs() * _cdiv(length, tile_l) >= fill:
            break  # splits of L will do, and a program keeps more loads in flight
        elif _cdiv(length, tile_l // 2) <= max_splits:
            tile_l //= 2
        else:
            break
    blocks = _cdiv(length, tile_l)
    splits = min(_cdiv(fill, programs()), blocks, max_splits)
    steps = _cdiv(blocks, splits)
    splits = _cdiv(blocks, steps)

    tile_k = 1
    if hidden:
        room = _MAX_GATE_TILE // wide // (tile_n * tile_c)
        tile_k = min(_pow2_at_least(hidden), max(room, 1), _MAX_K)
    return PassPlan(
        tile_n=tile_n,
        tile_c=tile_c,
        tile_l=tile_l,
        tile_k=tile_k,
        steps=steps,
        splits=splits,
        c_tiles=_cdiv(c, tile_c),
        programs=programs() * splits,
        mid=mid,
        units=inner // align,
        align=align,
        channels_last=channels_last,
    )


def plan_mlp(
    rows: int,
    cols: int,
    depth: int,
    itemsize: int,
    min_cols: int = 1,
    fill: int = FILL,
) -> MlpPlan:
    """Plan a (rows, depth) x (depth, cols) product; every weight tile serves ``tile_n`` rows.

    ``itemsize`` is that of the accumulation type. ``min_cols``: columns to keep together where the
    weight is contiguous along them. A tile that is small in rows and columns is long in depth, so
    that a product of 128 x 2048 by 2048 x 128 waits for memory 16 times, not 128.
    """
    budget = _MAX_GATE_TILE // (2 if itemsize == 8 else 1)
    tile_n = min(_pow2_at_least(rows), 16)
    tile_r = min(_pow2_at_least(cols), 8)
    least = min(min_cols, tile_r)

    def programs() -> int:
        return _cdiv(rows, tile_n) * _cdiv(cols, tile_r)

    while programs() < fill and (tile_r > least or tile_n > 1):
        if tile_r > least and tile_r >= tile_n:
            tile_r //= 2
        elif tile_n > 1:
            tile_n //= 2
        else:
            tile_r //= 2
    tile_k = min(_pow2_at_least(depth), budget // (tile_n * tile_r), _MAX_DEPTH)
    return MlpPlan(tile_n, tile_r, tile_k, programs())


def plan_outer(rows: int, cols: int, depth: int, itemsize: int) -> MlpPlan:
    """Plan a (depth, rows)^T x (depth, cols) product: ``tile_n`` along depth, ``tile_k`` cols."""
    budget = _MAX_GATE_TILE // (2 if itemsize == 8 else 1)
    tile_r = min(_pow2_at_least(rows), 8)
    tile_c = min(_pow2_at_least(cols), 32)
    tile_n = min(_pow2_at_least(depth), budget // (tile_r * tile_c), 16)
    return MlpPlan(tile_n, tile_r, tile_c, _cdiv(rows, tile_r) * _cdiv(cols, tile_c))


@dataclass(frozen=True)
class ConvGradPlan:
    """Weight gradients of a convolution over channels: partial sums, and how they are merged.

    ``tile_n`` x ``tile_c`` at a time, ``rows`` samples per program; ``parts`` partial gradients of
    ``count`` weights, merged ``tile_p`` x ``tile_w`` at a time.
    """

    tile_n: int
    tile_c: int
    rows: int
    splits: int
    programs: int
    parts: int
    count: int
    tile_p: int
    tile_w: int
    merge_programs: int


def plan_conv_grad(
    n: int, c: int, taps: int, per_channel: bool, itemsize: int, fill: int = FILL
) -> ConvGradPlan:
    """Plan the weight gradients of (n, c) gates; ``itemsize`` is that of the accumulation type."""
    budget = _MAX_GATE_TILE // (2 if itemsize == 8 else 1)
    tile_c = min(_pow2_at_least(c), 64)
    tile_n = min(_pow2_at_least(n), budget // tile_c, 16)
    tiles = _cdiv(c, tile_c)
    splits = min(_cdiv(fill // 8, tiles * taps), _cdiv(n, tile_n), _MAX_SPLITS)
    rows = _cdiv(n, splits)
    splits = _cdiv(n, rows)
    parts, count = (splits, c * taps) if per_channel else (splits * tiles, taps)
    tile_w = min(_pow2_at_least(count), 128)
    tile_p = min(_pow2_at_least(parts), budget // tile_w)
    return ConvGradPlan(
        tile_n=tile_n,
        tile_c=tile_c,
        rows=rows,
        splits=splits,
        programs=tiles * taps * splits,
        parts=parts,
        count=count,
        tile_p=tile_p,
        tile_w=tile_w,
        merge_programs=_cdiv(count, tile_w),
    )
