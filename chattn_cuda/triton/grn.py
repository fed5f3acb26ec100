"""Global response normalisation on Triton: what to allocate and to launch.

Forward is three launches: reduce (x * x), gate, rescale. Backward is five: reduce (dy * x), squeeze
(dy), the weights' gradients, slope, map gradient.
"""

# mypy: allow-untyped-defs
# (Triton compiles the kernels; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chattn_cuda.reference import accumulation_dtype

from . import host
from .kernels import elements
from .kernels.activations import to_storage
from .kernels.elements import spread, weigh
from .kernels.parts import load_weight, merge_sum
from .kernels.passes import SIZES, channels_and_length, emit_tile, last_first, locate
from .plan import UNLIMITED, PassPlan, plan_pass
from .program import Operator

_CHANNELS = 512  # at a time, of the programs that take a sample
_SAMPLES, _COLUMNS = 16, 32  # at a time, of those that add up samples

# ---- kernels: the gate, which depends on all channels, and its gradients
_COUNTS = ("n_size", "c_size", "parts")


@triton.jit(do_not_specialize=_COUNTS)
def grn_gate_kernel(
    part_squares, norms, gate, n_size, c_size, parts, EPS: tl.constexpr, TC: tl.constexpr
):
    """Norms and norm / (mean norm + EPS); a program per sample."""
    C = tl.cast(c_size, tl.int64)
    first, stride = tl.program_id(0).to(tl.int64) * C, tl.cast(n_size, tl.int64) * C
    total = tl.zeros([TC], norms.dtype.element_ty)
    for start in range(0, c_size, TC):
        c = start + tl.arange(0, TC)
        total += tl.sqrt(merge_sum(part_squares, first + c, c < C, parts, stride))
    mean = tl.sum(total, axis=0) / c_size + EPS
    for start in range(0, c_size, TC):
        c = start + tl.arange(0, TC)
        norm = tl.sqrt(merge_sum(part_squares, first + c, c < C, parts, stride))
        tl.store(norms + first + c, norm, mask=c < C)
        tl.store(gate + first + c, norm / mean, mask=c < C)


@triton.jit
def gate_gradient_of(part_dot, dgate, weight, first, c, C, parts, stride, ACC: tl.constexpr):
    """Weight * (dy . x) + dgate."""
    ds = merge_sum(part_dot, first + c, c < C, parts, stride) * load_weight(weight, c, c < C, ACC)
    if dgate is not None:
        ds += tl.load(dgate + first + c, mask=c < C, other=0.0)
    return ds


@triton.jit(do_not_specialize=_COUNTS)
def grn_slope_kernel(
    part_dot, dgate, norms, weight, slope, n_size, c_size, parts, EPS: tl.constexpr,
    TC: tl.constexpr,
):  # fmt: skip
    """Slope = dnorm / norm, 0 where the norm is 0; a program per sample."""
    ACC: tl.constexpr = norms.dtype.element_ty
    C = tl.cast(c_size, tl.int64)
    first, stride = tl.program_id(0).to(tl.int64) * C, tl.cast(n_size, tl.int64) * C
    total, products = tl.zeros([TC], ACC), tl.zeros([TC], ACC)
    for start in range(0, c_size, TC):
        c = start + tl.arange(0, TC)
        norm = tl.load(norms + first + c, mask=c < C, other=0.0)
        total += norm
        products += norm * gate_gradient_of(
            part_dot, dgate, weight, first, c, C, parts, stride, ACC
        )
    mean = tl.sum(total, axis=0) / c_size + EPS
    common = tl.sum(products, axis=0) / c_size / mean
    for start in range(0, c_size, TC):
        c = start + tl.arange(0, TC)
        norm = tl.load(norms + first + c, mask=c < C, other=0.0)
        ds = gate_gradient_of(part_dot, dgate, weight, first, c, C, parts, stride, ACC)
        there = norm != 0
        v = tl.where(there, (ds - common) / mean / tl.where(there, norm, 1.0), 0.0)
        tl.store(slope + first + c, v, mask=c < C)


@triton.jit(do_not_specialize=_COUNTS)
def grn_weights_kernel(
    part_dot, part_sum, gate, dweight, dbias, n_size, c_size, parts, sum_parts,
    TN: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """Dweight = sum_n gate (dy . x), dbias = sum_n sum dy."""
    ACC: tl.constexpr = gate.dtype.element_ty
    N, C = tl.cast(n_size, tl.int64), tl.cast(c_size, tl.int64)
    c = tl.program_id(0).to(tl.int64) * TC + tl.arange(0, TC)
    weights, biases = tl.zeros([TN, TC], ACC), tl.zeros([TN, TC], ACC)
    for start in range(0, n_size, TN):
        n = tl.cast(start, tl.int64) + tl.arange(0, TN)
        where, mask = n[:, None] * C + c[None, :], (n < N)[:, None] & (c < C)[None, :]
        s = tl.load(gate + where, mask=mask, other=0.0)
        weights += s * merge_sum(part_dot, where, mask, parts, N * C)
        biases += merge_sum(part_sum, where, mask, sum_parts, N * C)
    kind = dweight.dtype.element_ty
    tl.store(dweight + c, to_storage(tl.sum(weights, axis=0), kind), mask=c < C)
    tl.store(dbias + c, to_storage(tl.sum(biases, axis=0), kind), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def grn_rescale_kernel(
    x, y, weight, bias, gate, n_size, mid_size, inner_units, steps, c_tiles, splits,
    ALIGN: tl.constexpr, CL: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    """Y = (1 + weight * gate) x + bias."""
    ACC: tl.constexpr = gate.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    N = tl.cast(n_size, tl.int64)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    mask = (n < N)[:, None] & (c < C)[None, :]
    s = tl.load(gate + (n[:, None] * C + c[None, :]), mask=mask, other=0.0)
    s = 1.0 + s * load_weight(weight, c, c < C, ACC)[None, :]
    shift = load_weight(bias, c, c < C, ACC)[None, :]
    emit_tile((x,), (s, shift), (y,), n, c, split, steps, n_size, C, L, spread, CL, TN, TC, TL)


@triton.jit(do_not_specialize=SIZES)
def grn_gradient_kernel(
    dy, x, dx, weight, gate, slope, n_size, mid_size, inner_units, steps, c_tiles, splits,
    ALIGN: tl.constexpr, CL: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    """Dx = (1 + weight * gate) dy + slope * x."""
    ACC: tl.constexpr = gate.dtype.element_ty
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    N = tl.cast(n_size, tl.int64)
    n, c, split = locate(last_first(), c_tiles, splits, TN, TC, CL)
    where, mask = n[:, None] * C + c[None, :], (n < N)[:, None] & (c < C)[None, :]
    s = tl.load(gate + where, mask=mask, other=0.0)
    s = 1.0 + s * load_weight(weight, c, c < C, ACC)[None, :]
    k = tl.load(slope + where, mask=mask, other=0.0)
    emit_tile((dy, x), (s, k), (dx,), n, c, split, steps, n_size, C, L, weigh, CL, TN, TC, TL)


# ---- operators -----------------------------------------------------------------------------------


def _plan(x: Tensor, channels_last: bool, tiles: int) -> PassPlan:
    n, c, hw, cl = host.shape_of(x, channels_last)
    size = x.element_size()
    return plan_pass(n, c, hw, cl, size, tiles, max_splits=UNLIMITED, fill=host.FILL)


def forward_launches(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[tuple[Tensor, Tensor, Tensor], list[host.Launch]]:
    """Plan of ``grn_forward``: outputs (y, norms, gate) and the launches.

    Args:
        x: (N, C, H, W), any strides.
        weight: (C,), x's dtype, or float32 for a 16-bit x.
        bias: (C,), the same.
        eps: added to the mean norm.
    """
    channels_last = host.is_channels_last(x)
    n, c = x.shape[:2]
    y = host.empty_map(x, channels_last)
    norms, gate = (x.new_empty((n, c), dtype=accumulation_dtype(x.dtype)) for _ in range(2))
    outputs = (y, norms, gate)
    if n == 0:
        return outputs, []
    squares, reduce = host.fold((x,), channels_last, elements.add_squares, tiles=2)
    numbers = (squares, norms, gate, n, c, squares.shape[1], eps, _CHANNELS)
    p = _plan(x, channels_last, 1)
    args = (x, y, weight, bias, gate, *host.sizes(p, n), *host.constants(p))
    return outputs, [
        reduce,
        host.Launch(grn_gate_kernel, n, numbers),
        host.Launch(grn_rescale_kernel, p.programs, args),
    ]


def backward_launches(
    dy: Tensor, dgate: Tensor | None, x: Tensor, norms: Tensor, gate: Tensor, weight: Tensor,
    eps: float, need_dx: bool, need_dw: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor], list[host.Launch]]:  # fmt: skip
    """Plan of ``grn_backward``, the gradients of ``grn_forward``: outputs and launches.

    Returns:
        dx, dweight, dbias; shape (0,) where not needed.
    """
    channels_last = host.is_channels_last(x)
    n, c = x.shape[:2]
    dx = host.empty_map(x, channels_last) if need_dx else x.new_empty((0,))
    new_weight = weight.new_zeros if n == 0 else weight.new_empty
    dweight, dbias = (new_weight((c if need_dw else 0,)) for _ in range(2))
    outputs = (dx, dweight, dbias)
    if n == 0 or not (need_dx or need_dw):
        return outputs, []
    dots, reduce = host.reduce(dy, (x,), channels_last)
    launches, parts = [reduce], dots.shape[1]
    if need_dw:
        sums, squeeze = host.squeeze((dy,), channels_last)
        args = (dots, sums, gate, dweight, dbias, n, c, parts, len(sums), _SAMPLES, _COLUMNS)
        launches += [squeeze, host.Launch(grn_weights_kernel, -(-c // _COLUMNS), args)]
    if need_dx:
        slope = norms.new_empty((n, c))
        numbers = (dots, dgate, norms, weight, slope, n, c, parts, eps, _CHANNELS)
        p = _plan(x, channels_last, 2)
        maps = (dy, x, dx, weight, gate, slope, *host.sizes(p, n), *host.constants(p))
        launches += [
            host.Launch(grn_slope_kernel, n, numbers),
            host.Launch(grn_gradient_kernel, p.programs, maps),
        ]
    return outputs, launches


grn_forward = Operator(forward_launches, maps=("x",), like="x")
grn_backward = Operator(backward_launches, maps=("dy", "x"), like="x")
