"""The gate of Squeeze-and-Excitation, gate_fn(act(pooled w1^T + b1) w2^T + b2), and its gradients.

Every product is a tile of samples x features with the weight tile read once for all its samples.
A tile [TN, TR, TK] is accumulated elementwise over K in steps of TK and summed over its last axis
at the end: an outer product per thread, as in a matrix multiplication in registers, in exactly the
accumulation type (no TF32), for every size and float type. With TK partial sums per result, its
rounding error grows with K / TK only.

The kernels also merge the partial results of the passes where they first need them.
"""

# mypy: ignore-errors
# (Triton compiles these functions; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate, activation_gradient, gate_gradient, to_storage
from .elements import spread, weigh
from .parts import load_weight, merge_sum
from .passes import SIZES, channels_and_length, emit_tile, last_first, locate

_GATE_SIZES = ("n_size", "hw", "splits")


@triton.jit(do_not_specialize=_GATE_SIZES)
def mlp_hidden_kernel(
    part_sum,
    w1,
    b1,
    pooled,
    hidden,
    n_size,
    c_size,
    r_size,
    hw,
    splits,
    TN: tl.constexpr,
    TR: tl.constexpr,
    TK: tl.constexpr,
):
    """Hidden = pooled w1^T + b1; merges the squeeze's partials and stores pooled.

    w1 and hidden: None for a gate of one layer, which needs pooled alone; r_size is 1 then. Grid:
    sample tiles x hidden tiles (fastest).
    """
    ACC: tl.constexpr = pooled.dtype.element_ty
    N = tl.cast(n_size, tl.int64)
    r_tiles = tl.cdiv(r_size, TR)
    r_tile = tl.program_id(0) % r_tiles
    n = (tl.program_id(0) // r_tiles).to(tl.int64) * TN + tl.arange(0, TN)
    r = r_tile.to(tl.int64) * TR + tl.arange(0, TR)
    acc = tl.zeros([TN, TR, TK], ACC)
    for k in range(0, c_size, TK):
        c = k + tl.arange(0, TK)
        where = n[:, None] * c_size + c[None, :]
        exists = (n < N)[:, None] & (c < c_size)[None, :]
        if w1 is not None:  # asked for first: it waits for no partial sum
            w_mask = (r < r_size)[:, None] & (c < c_size)[None, :]
            w = load_weight(w1, r[:, None] * c_size + c[None, :], w_mask, ACC)
        p = merge_sum(part_sum, where, exists, splits, N * c_size) / hw
        tl.store(pooled + where, p, mask=exists & (r_tile == 0))
        if w1 is not None:
            acc += p[:, None, :] * w[None, :, :]
    if w1 is not None:
        h = tl.sum(acc, axis=2)
        if b1 is not None:
            h += tl.load(b1 + r, mask=r < r_size, other=0.0).to(ACC)[None, :]
        mask = (n < N)[:, None] & (r < r_size)[None, :]
        tl.store(hidden + (n[:, None] * r_size + r[None, :]), h, mask=mask)


@triton.jit
def mlp_gate_tile(
    hidden,
    w2,
    b2,
    n,
    c,
    n_size,
    C,
    r_size,
    ACT: tl.constexpr,
    PARAM: tl.constexpr,
    GATE: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TK: tl.constexpr,
):
    """gate_fn(act(hidden) w2^T + b2) for samples n [TN] and channels c [TC]."""
    ACC: tl.constexpr = hidden.dtype.element_ty
    acc = tl.zeros([TN, TC, TK], ACC)
    for start in range(0, r_size, TK):
        k = start + tl.arange(0, TK)
        h_mask = (n < n_size)[:, None] & (k < r_size)[None, :]
        h = tl.load(hidden + (n[:, None] * r_size + k[None, :]), mask=h_mask, other=0.0)
        w_mask = (c < C)[:, None] & (k < r_size)[None, :]
        w = load_weight(w2, c[:, None] * r_size + k[None, :], w_mask, ACC)
        acc += activate(h, ACT, PARAM)[:, None, :] * w[None, :, :]
    z = tl.sum(acc, axis=2)
    if b2 is not None:
        z += tl.load(b2 + c, mask=c < C, other=0.0).to(ACC)[None, :]
    return activate(z, GATE, 0.0)


@triton.jit(do_not_specialize=SIZES)
def mlp_rescale_kernel(
    x,
    y,
    hidden,
    w2,
    b2,
    gate,
    n_size,
    mid_size,
    inner_units,
    steps,
    c_tiles,
    splits,
    r_size,
    ACT: tl.constexpr,
    PARAM: tl.constexpr,
    GATE: tl.constexpr,
    ALIGN: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
    TK: tl.constexpr,
):
    """Gate = gate_fn(act(hidden) w2^T + b2), stored once, and y = gate * x."""
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    s = mlp_gate_tile(hidden, w2, b2, n, c, n_size, C, r_size, ACT, PARAM, GATE, TN, TC, TK)
    mask = (n < n_size)[:, None] & (c < C)[None, :] & (split == 0)
    tl.store(gate + (n[:, None] * C + c[None, :]), s, mask=mask)
    emit_tile((x,), (s,), (y,), n, c, split, steps, n_size, C, L, weigh, CL, TN, TC, TL)


@triton.jit(do_not_specialize=_GATE_SIZES)
def mlp_dhidden_kernel(
    part_ds,
    dgate,
    gate,
    hidden,
    w2,
    dz,
    dhidden,
    n_size,
    c_size,
    r_size,
    splits,
    ACT: tl.constexpr,
    PARAM: tl.constexpr,
    GATE: tl.constexpr,
    TN: tl.constexpr,
    TR: tl.constexpr,
    TK: tl.constexpr,
):
    """Dz = (merged ds + dgate) gate_fn', and dhidden = (dz w2) act'(hidden).

    Stores dz. hidden, w2 and dhidden: None for a gate of one layer, which needs dz alone; r_size is
    1 then.
    """
    ACC: tl.constexpr = dz.dtype.element_ty
    N = tl.cast(n_size, tl.int64)
    r_tiles = tl.cdiv(r_size, TR)
    r_tile = tl.program_id(0) % r_tiles
    n = (tl.program_id(0) // r_tiles).to(tl.int64) * TN + tl.arange(0, TN)
    r = r_tile * TR + tl.arange(0, TR)
    acc = tl.zeros([TN, TR, TK], ACC)
    for k in range(0, c_size, TK):
        c = k + tl.arange(0, TK)
        where = n[:, None] * c_size + c[None, :]
        exists = (n < N)[:, None] & (c < c_size)[None, :]
        if w2 is not None:  # asked for first: it waits for no partial sum
            w_mask = (r < r_size)[:, None] & (c < c_size)[None, :]
            w = load_weight(w2, c.to(tl.int64)[None, :] * r_size + r[:, None], w_mask, ACC)
        ds = merge_sum(part_ds, where, exists, splits, N * c_size)
        if dgate is not None:
            ds += tl.load(dgate + where, mask=exists, other=0.0)
        s = tl.load(gate + where, mask=exists, other=0.0)
        d = gate_gradient(s, ds, GATE)
        tl.store(dz + where, d, mask=exists & (r_tile == 0))
        if w2 is not None:
            acc += d[:, None, :] * w[None, :, :]
    if w2 is not None:
        to = n[:, None] * r_size + r[None, :]
        mask = (n < N)[:, None] & (r < r_size)[None, :]
        h = tl.load(hidden + to, mask=mask, other=0.0)
        dh = activation_gradient(h, tl.sum(acc, axis=2), ACT, PARAM)
        tl.store(dhidden + to, dh, mask=mask)


@triton.jit(do_not_specialize=_GATE_SIZES)
def mlp_dweight_kernel(
    dhidden,
    pooled,
    hidden,
    dz,
    dw1,
    db1,
    dw2,
    db2,
    n_size,
    c_size,
    r_size,
    ACT: tl.constexpr,
    PARAM: tl.constexpr,
    TN: tl.constexpr,
    TR: tl.constexpr,
    TC: tl.constexpr,
):
    """Weight gradients dw1 = dhidden^T pooled and dw2 = dz^T act(hidden); db1, db2: sums over n.

    Grid: hidden tiles x channel tiles (fastest); a program makes the same (r, c) tile of dw1 and of
    dw2^T, walking over the samples in order. dhidden, dw1 and db1: None for a gate of one layer.
    """
    ACC: tl.constexpr = dz.dtype.element_ty
    c_tiles = tl.cdiv(c_size, TC)
    c_tile = tl.program_id(0) % c_tiles
    r_tile = tl.program_id(0) // c_tiles
    c = c_tile.to(tl.int64) * TC + tl.arange(0, TC)
    r = r_tile.to(tl.int64) * TR + tl.arange(0, TR)
    sum_w1 = tl.zeros([TR, TC], ACC)
    sum_w2 = tl.zeros([TR, TC], ACC)
    sum_b1 = tl.zeros([TR], ACC)
    sum_b2 = tl.zeros([TC], ACC)
    for start in range(0, n_size, TN):
        n = tl.cast(start, tl.int64) + tl.arange(0, TN)
        r_mask = (n < n_size)[:, None] & (r < r_size)[None, :]
        r_where = n[:, None] * r_size + r[None, :]
        c_mask = (n < n_size)[:, None] & (c < c_size)[None, :]
        c_where = n[:, None] * c_size + c[None, :]
        a = activate(tl.load(hidden + r_where, mask=r_mask, other=0.0), ACT, PARAM)
        d = tl.load(dz + c_where, mask=c_mask, other=0.0)
        if dw1 is not None:
            dh = tl.load(dhidden + r_where, mask=r_mask, other=0.0)
            p = tl.load(pooled + c_where, mask=c_mask, other=0.0)
            sum_w1 += tl.sum(dh[:, :, None] * p[:, None, :], axis=0)
            sum_b1 += tl.sum(dh, axis=0)
        sum_w2 += tl.sum(a[:, :, None] * d[:, None, :], axis=0)
        sum_b2 += tl.sum(d, axis=0)
    mask = (r < r_size)[:, None] & (c < c_size)[None, :]
    W: tl.constexpr = dw2.dtype.element_ty
    if dw1 is not None:
        tl.store(dw1 + (r[:, None] * c_size + c[None, :]), to_storage(sum_w1, W), mask=mask)
        tl.store(db1 + r, to_storage(sum_b1, W), mask=(r < r_size) & (c_tile == 0))
    tl.store(dw2 + (c[None, :] * r_size + r[:, None]), to_storage(sum_w2, W), mask=mask)
    tl.store(db2 + c, to_storage(sum_b2, W), mask=(c < c_size) & (r_tile == 0))


@triton.jit
def mlp_dpooled_tile(
    dhidden,
    w1,
    n,
    c,
    n_size,
    C,
    r_size,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TK: tl.constexpr,
):
    """Dhidden w1 for samples n [TN] and channels c [TC]."""
    ACC: tl.constexpr = dhidden.dtype.element_ty
    acc = tl.zeros([TN, TC, TK], ACC)
    for start in range(0, r_size, TK):
        k = start + tl.arange(0, TK)
        d_mask = (n < n_size)[:, None] & (k < r_size)[None, :]
        d = tl.load(dhidden + (n[:, None] * r_size + k[None, :]), mask=d_mask, other=0.0)
        w_mask = (c < C)[:, None] & (k < r_size)[None, :]
        w = load_weight(w1, k.to(tl.int64)[None, :] * C + c[:, None], w_mask, ACC)
        acc += d[:, None, :] * w[None, :, :]
    return tl.sum(acc, axis=2)


@triton.jit(do_not_specialize=(*SIZES, "hw"))
def mlp_spread_kernel(
    dy,
    gate,
    dhidden,
    w1,
    dx,
    n_size,
    mid_size,
    inner_units,
    steps,
    c_tiles,
    splits,
    r_size,
    hw,
    ALIGN: tl.constexpr,
    CL: tl.constexpr,
    TN: tl.constexpr,
    TC: tl.constexpr,
    TL: tl.constexpr,
    TK: tl.constexpr,
):
    """Dx = dy gate + dp / HW with dp = dhidden w1."""
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    dp = mlp_dpooled_tile(dhidden, w1, n, c, n_size, C, r_size, TN, TC, TK)
    where = n[:, None] * C + c[None, :]
    mask = (n < n_size)[:, None] & (c < C)[None, :]
    s = tl.load(gate + where, mask=mask, other=0.0)
    emit_tile((dy,), (s, dp / hw), (dx,), n, c, split, steps, n_size, C, L, spread, CL, TN, TC, TL)
