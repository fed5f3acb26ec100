"""The formulas in plain PyTorch: the oracle of the tests and the `reference` backend.

Written to be checked by hand. Any floating-point type; sums, gates and small layers are computed
in float32 (float64 for float64), whatever autocast says; differentiable to any order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "accumulation_dtype",
    "affine_of_norm",
    "autocast_enabled",
    "convolved_channels",
    "efficient_channel_attention",
    "in_type",
    "linear",
    "no_autocast",
    "pooled",
    "select_branches",
    "squeeze_branches",
    "squeeze_excite",
    "squeeze_excite_scale_bias",
]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums and gates are computed and kept for maps of type ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_type(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` in that type.

    Without ``Tensor.to`` where it has it: exported programs would get an operation all the same.
    """
    return t if t.dtype == dtype else t.to(dtype)


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on, also for devices that have none."""
    # torch 2.11 does not trace `torch.amp.is_autocast_available`, and no torch an exception here.
    if device_type == "meta":
        return False
    try:
        return torch.is_autocast_enabled(device_type)
    except RuntimeError:
        return False


def no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which autocast does not change the types of the formulas."""
    if autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def squeeze_excite(
    x: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: Callable[[Tensor], Tensor] = F.relu,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    add_maxpool: bool = False,
) -> tuple[Tensor, Tensor]:
    """Squeeze-and-Excitation (Hu et al., arXiv 1709.01507, equations 2 to 4).

    ``p = mean_hw(x)``, or ``(mean_hw(x) + max_hw(x)) / 2`` with ``add_maxpool``;
    ``s = gate(w2 @ act(w1 @ p + b1) + b2)``; ``y[n, c] = s[n, c] * x[n, c]``. Without ``w1``,
    ``s = gate(w2 @ p + b2)``: effective SE (Lee and Park, arXiv 1911.06667, equation 5).

    Args:
        x: (N, C, H, W).
        w1: (rd, C) or (rd, C, 1, 1), or None.
        b1: (rd,) or None.
        w2: (C, rd) or (C, rd, 1, 1), rd = C without w1.
        b2: (C,) or None.
        act: Activation between the two layers.
        gate: Activation of the gate.
        add_maxpool: Mix the maximum into the mean.

    Returns:
        y, of x's shape and type, and the gate (N, C) in the accumulation type.
    """
    acc = accumulation_dtype(x.dtype)
    with no_autocast(x.device.type):
        u = in_type(x, acc)
        p = pooled(u, add_maxpool)
        s = gate(linear(p if w1 is None else act(linear(p, w1, b1)), w2, b2))
        y = in_type(u * s[:, :, None, None], x.dtype)
    return y, s


def squeeze_excite_scale_bias(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: Callable[[Tensor], Tensor] = F.relu,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    add_maxpool: bool = False,
) -> tuple[Tensor, Tensor]:
    """Squeeze-and-Excitation with a scale and a bias, as in Leela Chess Zero's networks.

    ``p`` as above; ``(z, b) = w2 @ act(w1 @ p + b1) + b2``, halves of 2C numbers;
    ``y[n, c] = gate(z)[n, c] * x[n, c] + b[n, c]``.

    Args:
        x: (N, C, H, W).
        w1: (rd, C) or (rd, C, 1, 1).
        b1: (rd,) or None.
        w2: (2C, rd) or (2C, rd, 1, 1): the rows of the scale, then those of the bias.
        b2: (2C,) or None.
        act: Activation between the two layers.
        gate: Activation of the scale.
        add_maxpool: Mix the maximum into the mean.

    Returns:
        y, of x's shape and type, and the scale (N, C) in the accumulation type.
    """
    acc = accumulation_dtype(x.dtype)
    with no_autocast(x.device.type):
        u = in_type(x, acc)
        z, b = linear(act(linear(pooled(u, add_maxpool), w1, b1)), w2, b2).chunk(2, 1)
        s = gate(z)
        y = in_type(u * s[:, :, None, None] + b[:, :, None, None], x.dtype)
    return y, s


def pooled(u: Tensor, add_maxpool: bool) -> Tensor:
    """The squeeze (N, C): the mean, or half of it and half of the maximum."""
    p = u.mean((2, 3))
    return 0.5 * p + 0.5 * u.amax((2, 3)) if add_maxpool else p


def linear(p: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """A layer on (N, K) numbers, in their type; ``w`` may be that of a 1x1 convolution."""
    return F.linear(p, in_type(w, p.dtype).flatten(1), None if b is None else in_type(b, p.dtype))


def convolved_channels(p: Tensor, weight: Tensor, circular: bool = False) -> Tensor:
    """Each channel of ``p`` (N, C), weighed with the k // 2 channels on either side of it.

    Beyond the ends are zeros or, with ``circular``, the channels at the other end.

    Args:
        p: (N, C).
        weight: (1, k), or (C, k) with weights of its own for every channel.
        circular: What is beyond the ends.

    Returns:
        (N, C): a sum over shifted copies, of operations that every reader of graphs knows. A
        convolution would keep ten bits of float32 on a GPU.
    """
    c, k = p.shape[1], weight.shape[1]
    reach = k // 2
    if reach > 0:
        if circular:
            p = torch.cat((p[:, c - reach :], p, p[:, :reach]), 1)
        else:
            p = F.pad(p, (reach, reach))
    terms = [weight[:, j] * p[:, j : j + c] for j in range(k)]
    return torch.stack(terms, 2).sum(2)


def efficient_channel_attention(
    x: Tensor,
    weight: Tensor,
    gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    circular: bool = False,
) -> tuple[Tensor, Tensor]:
    """Efficient channel attention (Wang et al., arXiv 1910.03151, equations 5 to 8).

    ``p = mean_hw(x)``; ``s[n, c] = gate(sum_j weight[j] * p[n, c + j - k // 2])``;
    ``y[n, c] = s[n, c] * x[n, c]``.

    Args:
        x: (N, C, H, W).
        weight: (1, 1, k), or (C, 1, k) with weights of its own for every channel; k is odd.
        gate: Activation of the gate.
        circular: Whether channel C is channel 0, instead of 0.

    Returns:
        y, of x's shape and type, and the gate (N, C) in the accumulation type.
    """
    acc = accumulation_dtype(x.dtype)
    with no_autocast(x.device.type):
        u = in_type(x, acc)
        s = gate(convolved_channels(u.mean((2, 3)), in_type(weight, acc).flatten(1), circular))
        y = in_type(u * s[:, :, None, None], x.dtype)
    return y, s


def affine_of_norm(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A batch norm by running statistics as ``scale * x + shift``.

    Args:
        weight: (C,) or None.
        bias: (C,) or None.
        mean: (C,).
        var: (C,).
        eps: Added to the variance.
        dtype: In which it is computed.

    Returns:
        Scale and shift, both (C,) of type ``dtype``, differentiable in weight and bias.
    """
    scale = torch.rsqrt(var.to(dtype) + eps)
    if weight is not None:
        scale = scale * weight.to(dtype)
    if bias is None:
        return scale, -mean.to(dtype) * scale
    return scale, torch.addcmul(bias.to(dtype), mean.to(dtype), scale, value=-1)


def after_prologue(
    maps: Sequence[Tensor], prologue: Tensor, act: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ...]:
    """``act(scale * u + shift)`` of M branches u: a batch norm by running statistics, and ``act``.

    Args:
        maps: M branches (N, C, H, W), or one map (N, M * C, H, W) that holds them.
        prologue: scale and shift, (2, M * C) in the accumulation type.
        act: The activation.

    Returns:
        Maps like ``maps``.
    """
    scale, shift = prologue[:, :, None, None].unbind(0)
    rows = zip(scale.chunk(len(maps)), shift.chunk(len(maps)), maps, strict=True)
    return tuple(in_type(act(a * in_type(u, a.dtype) + b), u.dtype) for a, b, u in rows)


def squeeze_branches(branches: Sequence[Tensor]) -> Tensor:
    """The mean over positions of the branches' sum (Li et al., arXiv 1903.06586, equations 1, 2).

    Args:
        branches: M maps (N, C, H, W).

    Returns:
        (N, C) in the accumulation type.
    """
    acc = accumulation_dtype(branches[0].dtype)
    p = in_type(branches[0], acc).mean((2, 3))
    for u in branches[1:]:
        p = p + in_type(u, acc).mean((2, 3))
    return p


def select_branches(branches: Sequence[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """The branches, weighed by a softmax over them (Li et al., arXiv 1903.06586, equations 5, 6).

    ``s[n, m, c] = softmax_m(logits[n, m, c])``; ``y[n, c] = sum_m s[n, m, c] * branches[m][n, c]``.

    Args:
        branches: M maps (N, C, H, W).
        logits: (N, M, C) in the accumulation type.

    Returns:
        y, of a branch's shape and type, and the gate s (N, M, C) in the accumulation type.
    """
    acc = accumulation_dtype(branches[0].dtype)
    s = torch.softmax(logits, 1)
    y = in_type(branches[0], acc) * s[:, 0, :, None, None]
    for m, u in enumerate(branches[1:], 1):
        y = y + in_type(u, acc) * s[:, m, :, None, None]
    return in_type(y, branches[0].dtype), s
