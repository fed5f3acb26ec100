"""The selective kernel on Triton: what to allocate and to launch.

Forward is three launches: squeeze, mean, softmax + select. Backward is three: reduce (dy * x_m),
gradient of the logits, gradients of the branches. Branches that are slices of one map are copied
first, and a stacked gradient is put together from its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda.reference import accumulation_dtype

from . import host
from .kernels import elements
from .kernels import sk as kernels
from .plan import UNLIMITED, PassPlan, plan_pass
from .program import Operator

SCHEMAS = (
    "sk_squeeze(Tensor[] branches, Tensor? prologue=None, int act=1, float act_param=0.0) "
    "-> Tensor pooled",
    "sk_select(Tensor[] branches, Tensor logits, Tensor? prologue=None, int act=1, "
    "float act_param=0.0) -> Tensor y",
    "sk_dot(Tensor dy, Tensor logits, Tensor[] branches) -> Tensor dlogits",
    "sk_gradient(Tensor dy, Tensor logits, Tensor? dpooled, bool channels_last, bool stacked) "
    "-> Tensor[] dbranches",
)
_PLANES = 256  # of a program of the kernels that have no map


def _tiles(maps: int) -> int:
    """How many tiles a pass over so many maps keeps, to a power of two.

    Those of a plan for more than four would be too small for 128-bit loads of 16-bit maps.
    """
    return min(1 << (maps - 1).bit_length(), 4)


def _select_plan(x: Tensor, m: int, channels_last: bool) -> PassPlan:
    """The plan of a pass that writes maps and keeps m tiles."""
    n, c, hw, cl = host.shape_of(x, channels_last)
    size = x.element_size()
    return plan_pass(n, c, hw, cl, size, _tiles(m), max_splits=UNLIMITED, fill=host.FILL)


def _programs(planes: int) -> int:
    return -(-planes // _PLANES)


def squeeze_launches(
    branches: Sequence[Tensor], prologue: Tensor | None = None, act: int = 1, act_param: float = 0.0
) -> tuple[Tensor, list[host.Launch]]:
    """Plan of ``sk_squeeze``: the mean (N, C) of the branches' sum, in accumulators; launches.

    Args:
        branches: 1 to 4 maps (N, C, H, W) of one shape and type, any strides.
        prologue: scale and shift (2, M, C) in the accumulation type, or None.
        act: The code of the prologue's activation.
        act_param: Its parameter.
    """
    x = branches[0]
    channels_last = host.is_channels_last(x)
    n, c, hw, _ = host.shape_of(x, channels_last)
    pooled = x.new_empty((n, c), dtype=accumulation_dtype(x.dtype))
    if n == 0:
        return pooled, []
    maps, tiles = tuple(branches), _tiles(len(branches))
    if prologue is None:
        parts, squeeze = host.squeeze(maps, channels_last, tiles)
    else:
        element, given = elements.add_activated, (act, act_param)
        parts, squeeze = host.fold(
            maps, channels_last, element, tiles=tiles, numbers=prologue, given=given
        )
        parts = parts[0]
    mean = (parts, pooled, n * c, hw, len(parts), _PLANES)
    return pooled, [squeeze, host.Launch(kernels.mean_kernel, _programs(n * c), mean)]


def select_launches(
    branches: Sequence[Tensor], logits: Tensor, prologue: Tensor | None = None, act: int = 1,
    act_param: float = 0.0,
) -> tuple[Tensor, list[host.Launch]]:  # fmt: skip
    """Plan of ``sk_select``: y in the first branch's format, and the launch.

    Args:
        branches: as above.
        logits: (N, M, C) in the accumulation type.
        prologue: as above, like what follows.
        act: of the prologue.
        act_param: of the prologue.
    """
    x, m = branches[0], len(branches)
    channels_last = host.is_channels_last(x)
    n = x.shape[0]
    y = host.empty_map(x, channels_last)
    if n == 0:
        return y, []
    maps = tuple(branches)
    p = _select_plan(x, m, channels_last)
    how: tuple[Any, ...] = (elements.weigh, None, 0)
    if prologue is not None:
        how = (elements.weigh_activated, (act, act_param), 2 * m)
    args = (maps, prologue, y, logits, *host.sizes(p, n), m, *how, *host.constants(p))
    return y, [host.Launch(kernels.select_kernel, p.programs, args)]


def dot_launches(
    dy: Tensor, logits: Tensor, branches: Sequence[Tensor]
) -> tuple[Tensor, list[host.Launch]]:
    """Plan of ``sk_dot``: the gradient of the logits (N, M, C), and the launches.

    Args:
        dy: gradient of y, any strides.
        logits: the forward's.
        branches: the forward's.
    """
    x, m = branches[0], len(branches)
    channels_last = host.is_channels_last(x)
    n, c = x.shape[:2]
    dlogits = logits.new_empty((n, m, c))
    if n == 0:
        return dlogits, []
    parts, reduce = host.reduce(dy, tuple(branches), channels_last, _tiles(m + 1))
    merge = (parts, logits, dlogits, n, c, parts.shape[1], m, _PLANES)
    return dlogits, [reduce, host.Launch(kernels.logit_gradient_kernel, _programs(n * c), merge)]


def gradient_launches(
    dy: Tensor, logits: Tensor, dpooled: Tensor | None, channels_last: bool
) -> tuple[list[Tensor], list[host.Launch]]:
    """Plan of ``sk_gradient``: a gradient per branch, and the launch.

    Args:
        dy: gradient of y, any strides.
        logits: the forward's, (N, M, C).
        dpooled: gradient of the mean (N, C), or None.
        channels_last: the format of the results.
    """
    n, c, hw, cl = host.shape_of(dy, channels_last)
    m = logits.shape[1]
    outputs = [host.empty_map(dy, channels_last) for _ in range(m)]
    if n == 0:
        return outputs, []
    p = _select_plan(dy, m + 1, channels_last)
    args = (dy, logits, dpooled, tuple(outputs), *host.sizes(p, n), hw, m)
    return outputs, [
        host.Launch(kernels.select_spread_kernel, p.programs, (*args, *host.constants(p)))
    ]


sk_squeeze = Operator(squeeze_launches, maps=("branches",), like="branches")
sk_select = Operator(select_launches, maps=("branches",), like="branches")
sk_dot = Operator(dot_launches, maps=("dy", "branches"), like="branches")
branch_gradients = Operator(gradient_launches, maps=("dy",), like="channels_last")


def sk_gradient(
    dy: Tensor, logits: Tensor, dpooled: Tensor | None, channels_last: bool, stacked: bool
) -> list[Tensor]:
    """Operator ``sk_gradient``: :func:`gradient_launches`.

    ``stacked``: return one map (N, M * C, H, W), put together by a copy.
    """
    outputs = branch_gradients(dy, logits, dpooled, channels_last)
    return [torch.cat(outputs, 1)] if stacked else outputs
