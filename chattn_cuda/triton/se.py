"""Squeeze-and-Excitation on Triton: what to allocate and to launch.

Forward is three launches: squeeze, hidden, gate + rescale. Backward is four: reduce (dy * x),
hidden gradient, weight gradients, map gradient. Without w1 the gate has one layer: the pooled
values take the place of the hidden ones, and w2 that of w1. Nothing synchronises with the host, and
memory comes from torch's allocator, so both can be captured in a CUDA graph after a first call has
compiled them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chattn_cuda.reference import accumulation_dtype

from . import host
from .kernels import se as kernels
from .plan import UNLIMITED, plan_mlp, plan_outer, plan_pass
from .program import Operator


def forward_launches(
    x: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: int,
    act_param: float,
    gate_fn: int,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[host.Launch]]:
    """Plan of ``se_forward``: outputs (y, pooled, hidden, gate) and the launches.

    Args:
        x: (N, C, H, W), float32, float16, bfloat16 or float64, any strides.
        w1: (rd, C) or (rd, C, 1, 1), x's dtype, or float32 for a 16-bit x; so are b1, w2 and b2.
            None for a gate of one layer: rd is C then, act the identity, and hidden empty.
        b1: (rd,) or None.
        w2: (C, rd) or (C, rd, 1, 1).
        b2: (C,) or None.
        act: the activation's code.
        act_param: leaky_relu's slope, elu's alpha.
        gate_fn: the gate's code.

    Returns:
        y in x's memory format; pooled (N, C), hidden (N, rd) and gate (N, C) in the accumulation
        type. Three launches; extra memory: the partial sums of the squeeze, at most 32 * N * C
        numbers.
    """
    channels_last = host.is_channels_last(x)
    n, c, hw, cl = host.shape_of(x, channels_last)
    r = c if w1 is None else w1.shape[0]
    acc = accumulation_dtype(x.dtype)
    y = host.empty_map(x, channels_last)
    pooled = x.new_empty((n, c), dtype=acc)
    hidden = x.new_empty((n, r) if w1 is not None else (0,), dtype=acc)
    gate = x.new_empty((n, c), dtype=acc)
    outputs = (y, pooled, hidden, gate)
    if n == 0:
        return outputs, []
    w1 = None if w1 is None else w1.reshape(r, c)
    w2 = w2.reshape(c, r)
    size = x.element_size()
    parts, squeeze = host.squeeze((x,), channels_last)
    launches = [squeeze]
    units = 1 if w1 is None else r
    m = plan_mlp(n, units, c, gate.element_size(), fill=host.FILL)
    launches.append(
        host.Launch(
            kernels.mlp_hidden_kernel,
            m.programs,
            (parts, w1, b1, pooled, None if w1 is None else hidden)
            + (n, c, units, hw, len(parts), m.tile_n, m.tile_r, m.tile_k),
        )
    )
    p = plan_pass(n, c, hw, cl, size, max_splits=UNLIMITED, hidden=r, fill=host.FILL)
    launches.append(
        host.Launch(
            kernels.mlp_rescale_kernel,
            p.programs,
            (x, y, pooled if w1 is None else hidden, w2, b2, gate, *host.sizes(p, n), r)
            + (act, act_param, gate_fn, *host.constants(p), p.tile_k),
        )
    )
    return outputs, launches


def backward_launches(
    dy: Tensor,
    dgate: Tensor | None,
    x: Tensor,
    pooled: Tensor,
    hidden: Tensor,
    gate: Tensor,
    w1: Tensor | None,
    w2: Tensor,
    act: int,
    act_param: float,
    gate_fn: int,
    need_dx: bool,
    need_dw: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], list[host.Launch]]:
    """Plan of ``se_backward``, the gradients of ``se_forward``: outputs and launches.

    Args:
        dy: gradient of y, any strides; copied first where it is not dense in x's memory format.
        dgate: gradient of the gate, (N, C), or None.
        x: the forward's map.
        pooled: (N, C), from the forward.
        hidden: (N, rd), from the forward.
        gate: (N, C), from the forward.
        w1: (rd, C) or (rd, C, 1, 1), as in the forward.
        w2: (C, rd) or (C, rd, 1, 1), as in the forward.
        act: the activation's code.
        act_param: leaky_relu's slope, elu's alpha.
        gate_fn: the gate's code.
        need_dx: whether to compute dx.
        need_dw: whether to compute the weight gradients.

    Returns:
        dx, dw1, db1, dw2, db2; shape (0,) where not needed. Up to four launches; extra memory: the
        partial sums, at most 64 * N * C numbers.
    """
    channels_last = host.is_channels_last(x)
    n, c, hw, cl = host.shape_of(x, channels_last)
    r = c if w1 is None else w1.shape[0]
    dx = host.empty_map(x, channels_last) if need_dx else x.new_empty((0,))
    new_weight = w2.new_zeros if n == 0 else w2.new_empty
    dw1 = new_weight((0,) if w1 is None or not need_dw else w1.shape)
    db1 = new_weight((0,) if w1 is None or not need_dw else (r,))
    dw2 = new_weight(w2.shape if need_dw else (0,))
    db2 = new_weight((c,) if need_dw else (0,))
    outputs = (dx, dw1, db1, dw2, db2)
    if n == 0 or not (need_dx or need_dw):
        return outputs, []
    w1 = None if w1 is None else w1.reshape(r, c)
    w2 = w2.reshape(c, r)
    size, acc_size = x.element_size(), gate.element_size()
    parts, reduce = host.reduce(dy, (x,), channels_last)
    launches = [reduce]
    dz = torch.empty_like(gate)
    dhidden = dz if w1 is None else torch.empty_like(hidden)
    units = 1 if w1 is None else r
    # w2 is contiguous along the hidden axis here: 8 columns are one 32-byte sector of float32
    m = plan_mlp(n, units, c, acc_size, min_cols=8, fill=host.FILL)
    launches.append(
        host.Launch(
            kernels.mlp_dhidden_kernel,
            m.programs,
            (parts, dgate, gate)
            + ((None, None, dz, None) if w1 is None else (hidden, w2, dz, dhidden))
            + (n, c, units, parts.shape[1], act, act_param, gate_fn, m.tile_n, m.tile_r, m.tile_k),
        )
    )
    if need_dw:
        m = plan_outer(r, c, n, acc_size)
        launches.append(
            host.Launch(
                kernels.mlp_dweight_kernel,
                m.programs,
                (
                    (None, None, pooled, dz, None, None, dw2, db2)
                    if w1 is None
                    else (dhidden, pooled, hidden, dz, dw1, db1, dw2, db2)
                )
                + (n, c, r, act, act_param, m.tile_n, m.tile_r, m.tile_k),
            )
        )
    if need_dx:
        p = plan_pass(n, c, hw, cl, size, max_splits=UNLIMITED, hidden=r, fill=host.FILL)
        launches.append(
            host.Launch(
                kernels.mlp_spread_kernel,
                p.programs,
                (dy, gate, dhidden, w2 if w1 is None else w1, dx)
                + (*host.sizes(p, n), r, hw, *host.constants(p), p.tile_k),
            )
        )
    return outputs, launches


se_forward = Operator(forward_launches, maps=("x",), like="x")
se_backward = Operator(backward_launches, maps=("dy", "x"), like="x")
