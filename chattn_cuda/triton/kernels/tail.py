"""Kernels of the fused tail: y = act(gate * inner(scale*x + shift) + residual).

Its numbers per channel are the rows scale, shift, mean and 1 / deviation, (4, C). Sums over samples
are float64.
"""

# mypy: ignore-errors
# (Triton compiles these functions; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

from .activations import IDENTITY, activate, activation_gradient, to_storage
from .parts import load_weight, merge_sum
from .passes import (
    SIZES,
    channels_and_length,
    emit_tile,
    last_first,
    load_planes,
    load_rows,
    locate,
    read,
)

COUNTS = ("n_size", "c_size", "parts")


# ---- element functions, whose CONSTANTS are codes and parameters: of `inner`, then of `act`
@triton.jit
def add_differences(state, xs, numbers, at, CONSTANTS: tl.constexpr):
    """A plane's first value, and the sums of the differences from it and of their squares.

    They keep their precision however large the mean is.
    """
    d = tl.where(at[1], read(xs[0], at, state[0].dtype) - state[0], 0.0)
    return state[0], state[1] + d, state[2] + d * d


@triton.jit
def chained(slope, d):
    """A gradient times a derivative; 0 where that is, whatever the gradient."""
    return tl.where(slope == 0, 0.0, slope * d).to(d.dtype)


@triton.jit
def slope_of(v, ACT: tl.constexpr, PARAM: tl.constexpr):
    """The derivative of an activation at v."""
    return activation_gradient(v, tl.full(v.shape, 1, v.dtype), ACT, PARAM)


@triton.jit
def behind(w, gate, residual, at, ACC: tl.constexpr):
    """What `act` is applied to."""
    return w * gate + read(residual, at, ACC)


@triton.jit
def gradient_behind(xs, w, gate, at, ACC: tl.constexpr, CONSTANTS: tl.constexpr):
    """The gradient in front of `act`, of dy, the map and what may be the residual.

    at: with the bits that tell whether the derivative is 1, where there are some.
    """
    dy = read(xs[0], at, ACC)
    if len(at) == 3:
        return tl.where(at[2], dy, 0.0).to(ACC)
    elif CONSTANTS[2] == IDENTITY:
        return dy
    else:
        z = behind(w, gate, xs[2], at, ACC)
        return chained(slope_of(z, CONSTANTS[2], CONSTANTS[3]), dy)


@triton.jit
def tail(xs, numbers, at, CONSTANTS: tl.constexpr):
    """Y of x and what may be the residual, and whether its derivative is not 0.

    numbers: scale, shift and gate.
    """
    ACC: tl.constexpr = numbers[0].dtype
    v = read(xs[0], at, ACC) * numbers[0] + numbers[1]
    w = activate(v, CONSTANTS[0], CONSTANTS[1])
    z = behind(w, numbers[2], xs[1], at, ACC)
    on = slope_of(z, CONSTANTS[2], CONSTANTS[3]) != 0
    return activate(z, CONSTANTS[2], CONSTANTS[3]), on


@triton.jit
def add_tail(state, xs, numbers, at, CONSTANTS: tl.constexpr):
    """The sums g and g*(x - mean); with an inner activation the five of csrc/engine/tail.h.

    numbers: scale, shift, mean and gate. xs: as in `gradient_behind`.
    """
    ACC: tl.constexpr = state[0].dtype
    x = read(xs[1], at, ACC)
    v, d = x * numbers[0] + numbers[1], x - numbers[2]
    w = activate(v, CONSTANTS[0], CONSTANTS[1])
    g = gradient_behind(xs, w, numbers[3], at, ACC, CONSTANTS)
    if len(state) == 2:
        return state[0] + g, state[1] + g * d
    else:
        slope = tl.where(at[1], slope_of(v, CONSTANTS[0], CONSTANTS[1]), 0.0).to(ACC)
        before = chained(slope, g)
        return (
            state[0] + g * w,
            state[1] + before,
            state[2] + before * d,
            state[3] + slope,
            state[4] + slope * d,
        )


@triton.jit
def tail_gradient(xs, numbers, at, CONSTANTS: tl.constexpr):
    """Dx and the residual's gradient; xs: as in `gradient_behind`.

    numbers: scale, shift, mean, gate, what a position receives through the squeeze, and what all
    lose: constant and slope.
    """
    ACC: tl.constexpr = numbers[0].dtype
    x = read(xs[1], at, ACC)
    v = x * numbers[0] + numbers[1]
    w = activate(v, CONSTANTS[0], CONSTANTS[1])
    g = gradient_behind(xs, w, numbers[3], at, ACC, CONSTANTS)
    dv = chained(slope_of(v, CONSTANTS[0], CONSTANTS[1]), numbers[3] * g + numbers[4])
    # By running statistics the slope is 0, whatever x is.
    return numbers[0] * dv - numbers[5] - chained(numbers[6], x - numbers[2]), g


# ---- passes that write maps
@triton.jit(do_not_specialize=SIZES)
def tail_apply_kernel(
    xs, numbers, gate, y, new_bits, n_size, mid_size, inner_units, steps, c_tiles, splits,
    CONSTANTS: tl.constexpr, ALIGN: tl.constexpr, CL: tl.constexpr, TN: tl.constexpr,
    TC: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    """Y, and perhaps the bits of its derivative; xs: x and what may be the residual."""
    ACC: tl.constexpr = numbers.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    tiles = load_rows(numbers, 2, c, C) + (load_planes(gate, n, c, n_size, C, 1.0, ACC),)
    emit_tile(
        xs, tiles, (y,), n, c, split, steps, n_size, C, L, tail, CL, TN, TC, TL, CONSTANTS,
        None, new_bits,
    )  # fmt: skip


@triton.jit(do_not_specialize=(*SIZES, "hw"))
def tail_gradient_kernel(
    xs, bits, numbers, gate, dpooled, lost, dxs, n_size, mid_size, inner_units, steps, c_tiles,
    splits, hw, CONSTANTS: tl.constexpr, ALIGN: tl.constexpr, CL: tl.constexpr, TN: tl.constexpr,
    TC: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    """Dx and the residual's gradient, of which one may be None; lost: as in `tail_norm_kernel`."""
    ACC: tl.constexpr = numbers.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    pooled = load_planes(dpooled, n, c, n_size, C, 0.0, ACC)
    if dpooled is not None:
        pooled = pooled / hw
    tiles = load_rows(numbers, 3, c, C) + (load_planes(gate, n, c, n_size, C, 1.0, ACC), pooled)
    if lost is None:
        zero = tl.zeros([1, TC], ACC)
        tiles = tiles + (zero, zero)
    else:
        tiles = tiles + load_rows(lost, 2, c, C)
    emit_tile(
        xs, tiles, dxs, n, c, split, steps, n_size, C, L, tail_gradient, CL, TN, TC, TL, CONSTANTS,
        bits,
    )  # fmt: skip


# ---- numbers of (N, C) and (C)
@triton.jit
def plane_mean(part, start, where, exists, parts, planes, each):
    """A plane's mean less `start`, and the sum of its squared differences from the mean.

    part: the parts (3, parts, N, C) of `add_differences`; each: 1 / HW.
    """
    row = parts * planes
    first = tl.load(part + where, mask=exists, other=0.0).to(tl.float64)
    total = merge_sum(part + row, where, exists, parts, planes).to(tl.float64)
    squares = merge_sum(part + 2 * row, where, exists, parts, planes).to(tl.float64)
    d = total * each
    return first - start + d, squares - d * total


@triton.jit
def follow(running, c, there, of_batch, momentum, ACC: tl.constexpr):
    """Running statistics follow those of the batch."""
    before = load_weight(running, c, there, tl.float64)
    after = (before + momentum * (of_batch - before)).to(ACC)
    tl.store(running + c, to_storage(after, running.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=(*COUNTS, "hw"))
def tail_statistics_kernel(
    part, weight, bias, mean, var, running_mean, running_var, updates, numbers, variance, means,
    pooled, n_size, c_size, parts, hw, momentum, EPS: tl.constexpr, TN: tl.constexpr,
    TC: tl.constexpr,
):  # fmt: skip
    """The norm's numbers, and of every plane the mean of x and of scale*x + shift.

    part: of `add_differences`, or None; mean and var: what the norm goes by, or None for the
    batch's, which go to `variance` and which the running ones follow, where there are any; means
    and pooled: None where they are not wanted.
    """
    KIND: tl.constexpr = numbers.dtype.element_ty
    N, C = tl.cast(n_size, tl.int64), tl.cast(c_size, tl.int64)
    c = tl.program_id(0).to(tl.int64) * TC + tl.arange(0, TC)
    there, each = c < C, 1 / tl.cast(hw, tl.float64)
    if mean is not None:
        center = load_weight(mean, c, there, tl.float64)
        spread = load_weight(var, c, there, tl.float64)
    else:
        # Sums of differences from a value of the channel, by Chan's formula for planes of one size.
        start = load_weight(part, c, there, tl.float64)
        apart = tl.zeros([TN, TC], tl.float64)
        squares, within = apart, apart
        for begin in range(0, n_size, TN):
            n = tl.cast(begin, tl.int64) + tl.arange(0, TN)
            where, exists = n[:, None] * C + c[None, :], (n < N)[:, None] & there[None, :]
            d, own = plane_mean(part, start[None, :], where, exists, parts, N * C, each)
            d = tl.where(exists, d, 0.0)
            apart, squares, within = apart + d, squares + d * d, within + own
        total, of_each = tl.sum(apart, axis=0), 1 / tl.cast(N, tl.float64)
        center = start + total * of_each
        between = tl.sum(squares, axis=0) - total * total * of_each
        spread = (tl.sum(within, axis=0) * each + between) * of_each
        tl.store(variance + c, spread.to(KIND), mask=there)
        if running_mean is not None:
            count = tl.cast(hw, tl.float64) * tl.cast(N, tl.float64)
            follow(running_mean, c, there, center, momentum, KIND)
            follow(running_var, c, there, spread * (count / (count - 1)), momentum, KIND)
        if updates is not None:
            tl.store(updates + c, tl.load(updates + c, mask=c == 0) + 1, mask=c == 0)
    inverse = 1 / tl.sqrt(spread + EPS)
    scale, offset = inverse, tl.zeros([TC], tl.float64)
    if weight is not None:
        scale = scale * load_weight(weight, c, there, tl.float64)
    if bias is not None:
        offset = load_weight(bias, c, there, tl.float64)
    tl.store(numbers + c, scale.to(KIND), mask=there)
    tl.store(numbers + C + c, (offset - center * scale).to(KIND), mask=there)
    tl.store(numbers + 2 * C + c, center.to(KIND), mask=there)
    tl.store(numbers + 3 * C + c, inverse.to(KIND), mask=there)
    if pooled is not None:
        for begin in range(0, n_size, TN):
            n = tl.cast(begin, tl.int64) + tl.arange(0, TN)
            where, exists = n[:, None] * C + c[None, :], (n < N)[:, None] & there[None, :]
            d, _ = plane_mean(part, center[None, :], where, exists, parts, N * C, each)
            tl.store(means + where, (d + center[None, :]).to(KIND), mask=exists)
            v = d * scale[None, :] + offset[None, :]
            tl.store(pooled + where, v.to(KIND), mask=exists)


@triton.jit(do_not_specialize=COUNTS)
def tail_sums_kernel(
    part, numbers, sums, dgate, n_size, c_size, parts, ROWS: tl.constexpr, TP: tl.constexpr
):
    """Sums (N, ROWS, C) of their parts (ROWS, parts, N, C), and the gate's gradient or None."""
    C = tl.cast(c_size, tl.int64)
    planes = tl.cast(n_size, tl.int64) * C
    i = tl.program_id(0).to(tl.int64) * TP + tl.arange(0, TP)
    exists, c = i < planes, i % C
    total = ()
    for r in tl.static_range(ROWS):
        v = merge_sum(part + r * parts * planes, i, exists, parts, planes)
        tl.store(sums + i // C * ROWS * C + r * C + c, v, mask=exists)
        total = total + (v,)
    if dgate is not None:
        d = total[0]
        if ROWS == 2:
            scale = tl.load(numbers + c, mask=exists, other=0.0)
            shift = tl.load(numbers + C + c, mask=exists, other=0.0)
            mean = tl.load(numbers + 2 * C + c, mask=exists, other=0.0)
            d = scale * total[1] + (scale * mean + shift) * d
        tl.store(dgate + i, d, mask=exists)


@triton.jit(do_not_specialize=("n_size", "c_size", "hw"))
def tail_norm_kernel(
    sums, means, dpooled, gate, numbers, dweight, dbias, lost, n_size, c_size, hw,
    ROWS: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """Gradients of the norm: of its shift, and of its scale by what it multiplies.

    lost: rows constant and slope, what all positions of a channel lose; it, and dweight with dbias,
    are None where they are not wanted.
    """
    ACC: tl.constexpr = numbers.dtype.element_ty
    N, C = tl.cast(n_size, tl.int64), tl.cast(c_size, tl.int64)
    c = tl.program_id(0).to(tl.int64) * TC + tl.arange(0, TC)
    there, each = c < C, 1 / tl.cast(hw, tl.float64)
    scale = tl.load(numbers + c, mask=there, other=0.0).to(tl.float64)
    mean = tl.load(numbers + 2 * C + c, mask=there, other=0.0).to(tl.float64)
    inverse = tl.load(numbers + 3 * C + c, mask=there, other=0.0).to(tl.float64)
    shifts = tl.zeros([TN, TC], tl.float64)
    scales = shifts
    for begin in range(0, n_size, TN):
        n = tl.cast(begin, tl.int64) + tl.arange(0, TN)
        exists = (n < N)[:, None] & there[None, :]
        s = load_planes(gate, n, c, N, C, 1.0, tl.float64)
        row = sums + n[:, None] * ROWS * C + c[None, :]
        if ROWS > 2:
            row += C
        shifts += s * tl.load(row, mask=exists, other=0.0)
        scales += s * tl.load(row + C, mask=exists, other=0.0)
        if dpooled is not None:
            d = load_planes(dpooled, n, c, N, C, 0.0, tl.float64)
            if ROWS == 2:
                shifts += d
                scales += d * (load_planes(means, n, c, N, C, 0.0, tl.float64) - mean[None, :])
            else:
                shifts += d * each * tl.load(row + 2 * C, mask=exists, other=0.0)
                scales += d * each * tl.load(row + 3 * C, mask=exists, other=0.0)
    dshift, dscale = tl.sum(shifts, axis=0), tl.sum(scales, axis=0)
    if dweight is not None:
        kind = dweight.dtype.element_ty
        tl.store(dweight + c, to_storage((dscale * inverse).to(ACC), kind), mask=there)
        tl.store(dbias + c, to_storage(dshift.to(ACC), kind), mask=there)
    if lost is not None:
        slope = scale * (each / tl.cast(N, tl.float64))
        tl.store(lost + c, (slope * dshift).to(ACC), mask=there)
        tl.store(lost + C + c, (slope * inverse * inverse * dscale).to(ACC), mask=there)
