"""Efficient channel attention on Triton: what to allocate and to launch.

Forward is two launches: squeeze, gate + rescale. Backward is four: reduce (dy * x), partial and
merged weight gradients, map gradient.
"""

from __future__ import annotations

from torch import Tensor

from chattn_cuda.reference import accumulation_dtype

from . import host
from .kernels import eca as kernels
from .plan import UNLIMITED, plan_conv_grad, plan_pass
from .program import Operator


def forward_launches(
    x: Tensor, weight: Tensor, gate_fn: int, circular: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], list[host.Launch]]:
    """Plan of ``eca_forward``: outputs (y, pooled, gate) and the launches.

    Args:
        x: (N, C, H, W), float32, float16, bfloat16 or float64, any strides.
        weight: (1, 1, k) or (C, 1, k), x's dtype, or float32 for a 16-bit x.
        gate_fn: the gate's code.
        circular: whether the channels wrap around.

    Returns:
        y in x's memory format; pooled and gate (N, C) in the accumulation type. Extra memory: the
        partial sums of the squeeze, at most 32 * N * C numbers.
    """
    channels_last = host.is_channels_last(x)
    n, c, hw, cl = host.shape_of(x, channels_last)
    acc = accumulation_dtype(x.dtype)
    y = host.empty_map(x, channels_last)
    pooled = x.new_empty((n, c), dtype=acc)
    gate = x.new_empty((n, c), dtype=acc)
    outputs = (y, pooled, gate)
    if n == 0:
        return outputs, []
    part_sum, squeeze = host.squeeze((x,), channels_last)
    parts = len(part_sum)
    p = plan_pass(n, c, hw, cl, x.element_size(), max_splits=UNLIMITED, fill=host.FILL)
    rescale = host.Launch(
        kernels.conv_rescale_kernel,
        p.programs,
        (x, y, part_sum, weight, pooled, gate, *host.sizes(p, n), hw, parts, weight.shape[2])
        + (weight.shape[0] > 1, circular, gate_fn, *host.constants(p)),
    )
    return outputs, [squeeze, rescale]


def backward_launches(
    dy: Tensor,
    dgate: Tensor | None,
    x: Tensor,
    pooled: Tensor,
    gate: Tensor,
    weight: Tensor,
    gate_fn: int,
    circular: bool,
    need_dx: bool,
    need_dw: bool,
) -> tuple[tuple[Tensor, Tensor], list[host.Launch]]:
    """Plan of ``eca_backward``, the gradients of ``eca_forward``: outputs and launches.

    Args:
        dy: gradient of y, any strides; copied first where it is not dense in x's memory format.
        dgate: gradient of the gate, (N, C), or None.
        x: the forward's map.
        pooled: (N, C), from the forward.
        gate: (N, C), from the forward.
        weight: (1, 1, k) or (C, 1, k), as in the forward.
        gate_fn: the gate's code.
        circular: whether the channels wrap around.
        need_dx: whether to compute dx.
        need_dw: whether to compute dweight.

    Returns:
        dx, dweight; shape (0,) where not needed. Extra memory: the partial sums, at most
        32 * (N * C + the weights) numbers.
    """
    channels_last = host.is_channels_last(x)
    n, c, hw, cl = host.shape_of(x, channels_last)
    dx = host.empty_map(x, channels_last) if need_dx else x.new_empty((0,))
    new_weight = weight.new_zeros if n == 0 else weight.new_empty
    dweight = new_weight(weight.shape if need_dw else (0,))
    outputs = (dx, dweight)
    if n == 0 or not (need_dx or need_dw):
        return outputs, []
    taps, per_channel = weight.shape[2], weight.shape[0] > 1
    how = (per_channel, circular, gate_fn)

    part_ds, reduce = host.reduce(dy, (x,), channels_last)
    launches, parts = [reduce], part_ds.shape[1]
    if need_dw:
        g = plan_conv_grad(n, c, taps, per_channel, gate.element_size(), fill=host.FILL)
        part_dw = gate.new_empty((g.parts, g.count))
        launches += [
            host.Launch(
                kernels.conv_dweight_kernel,
                g.programs,
                (part_ds, dgate, gate, pooled, part_dw, n, c, g.rows, parts, taps, *how)
                + (g.tile_n, g.tile_c),
            ),
            host.Launch(
                kernels.merge_weights_kernel,
                g.merge_programs,
                (part_dw, dweight, g.parts, g.count, g.tile_p, g.tile_w),
            ),
        ]
    if need_dx:
        p = plan_pass(n, c, hw, cl, x.element_size(), max_splits=UNLIMITED, fill=host.FILL)
        launches.append(
            host.Launch(
                kernels.conv_spread_kernel,
                p.programs,
                (dy, part_ds, dgate, gate, weight, dx, *host.sizes(p, n), hw, parts, taps, *how)
                + host.constants(p),
            )
        )
    return outputs, launches


eca_forward = Operator(forward_launches, maps=("x",), like="x")
eca_backward = Operator(backward_launches, maps=("dy", "x"), like="x")
