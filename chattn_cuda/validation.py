"""Checks of what users pass. C++ re-checks only what memory safety needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.backends import FUSED_DTYPES

__all__ = [
    "check_bool",
    "check_branches",
    "check_channel_dim",
    "check_effective_squeeze_excite",
    "check_efficient_channel_attention",
    "check_map",
    "check_padding_mode",
    "check_positive",
    "check_selective_kernel",
    "check_squeeze_excite",
    "unify_dtypes",
]

MAX_BRANCHES = 4  # of a selective kernel; kMaxBranches in csrc/engine/map.h
_QUANTISED = (
    ": it is quantised. Call chattn_cuda.restore(model) before the model is quantised, or "
    "dequantize() the map"
)
_DTYPES = ", ".join(str(d).removeprefix("torch.") for d in FUSED_DTYPES)


def check_map(
    x: Tensor,
    channels: int | None = None,
    name: str = "x",
    any_rank: bool = False,
    channel_dim: int = 1,
) -> None:
    """Raise unless ``x`` is a dense floating-point (N, C, H, W) tensor.

    Args:
        x: The feature map.
        channels: The expected C, if known.
        name: The caller's argument, for error messages.
        any_rank: Accept (N, C, L) and (N, C, D, H, W) too.
        channel_dim: 1, or -1: the channels come last, as in (N, H, W, C).

    Raises:
        TypeError: Not a tensor, or of a type that no backend computes in.
        ValueError: Another rank or channel count.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested:
        layout = "nested" if x.is_nested else str(x.layout)
        raise TypeError(f"{name} must be a dense tensor, got layout {layout}")
    if x.dtype not in FUSED_DTYPES:
        hint = _QUANTISED if x.is_quantized else ""
        raise TypeError(f"{name} must have dtype {_DTYPES}; got {x.dtype}{hint}")
    rank_fits = 3 <= x.dim() <= 5 if any_rank else x.dim() == 4
    if not rank_fits or (channels is not None and x.shape[channel_dim] != channels):
        c = "C" if channels is None else channels
        shapes = (
            f"N, {c}, {axes}" if channel_dim == 1 else f"N, {axes}, {c}"
            for axes in (("H, W", "L", "D, H, W") if any_rank else ("H, W",))
        )
        expected = " or ".join(f"({shape})" for shape in shapes)
        raise ValueError(f"{name} must have shape {expected}, got {tuple(x.shape)}")


def check_channel_dim(channel_dim: object) -> None:
    """Raise unless ``channel_dim`` is 1 or -1.

    Raises:
        ValueError: Another value.
    """
    if channel_dim not in (1, -1):
        raise ValueError(f"channel_dim must be 1 or -1, got {channel_dim!r}")


def check_positive(value: int, name: str) -> None:
    """Raise unless ``value`` is an integer of at least 1.

    Raises:
        TypeError: Not an integer.
        ValueError: Zero or negative.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_bool(value: object, name: str) -> None:
    """Raise unless ``value`` is True or False.

    Raises:
        TypeError: Another value.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_weight(x: Tensor, w: object, name: str) -> None:
    """Raise unless ``w`` can be a weight beside the map ``x``.

    Raises:
        TypeError: Not a dense floating-point tensor.
        ValueError: On another device.
    """
    if not isinstance(w, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(w).__name__}")
    if w.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {w.layout}")
    if w.dtype not in FUSED_DTYPES:
        raise TypeError(f"{name} must have dtype {_DTYPES}; got {w.dtype}")
    if w.device != x.device:
        raise ValueError(f"{name} must be on the device of x ({x.device}), but it is on {w.device}")


def check_squeeze_excite(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    names: Sequence[str] = ("w1", "b1", "w2", "b2"),
    outputs: int = 1,
) -> None:
    """Raise unless the weights of an SE block fit the map ``x``, which `check_map` accepted.

    ``outputs``: numbers per channel that the second layer gives.

    Raises:
        TypeError: A weight is not a dense floating-point tensor.
        ValueError: A weight has the wrong shape or is on another device.
    """
    for w, name in zip((w1, b1, w2, b2), names, strict=True):
        if w is not None or name not in (names[1], names[3]):
            check_weight(x, w, name)
    c = x.shape[1]
    shape = tuple(w1.shape)
    if len(shape) not in (2, 4) or shape[1:] != (c, 1, 1)[: len(shape) - 1]:
        raise ValueError(
            f"{names[0]} must have shape (rd, {c}) or (rd, {c}, 1, 1) for x with {c} channels, "
            f"got {shape}"
        )
    rd = shape[0]
    if rd < 1:
        raise ValueError(f"{names[0]} must have at least one row (rd >= 1), got shape {shape}")
    rows = outputs * c
    _check_matrix(w2, rows, rd, names[2])
    _check_bias(b1, rd, names[1])
    _check_bias(b2, rows, names[3])


def check_effective_squeeze_excite(
    x: Tensor, weight: Tensor, bias: Tensor | None, names: Sequence[str] = ("weight", "bias")
) -> None:
    """Raise unless the layer of an effective SE block fits the map ``x`` of `check_map`.

    Raises:
        TypeError: A weight is not a dense floating-point tensor.
        ValueError: A weight has the wrong shape or is on another device.
    """
    check_weight(x, weight, names[0])
    if bias is not None:
        check_weight(x, bias, names[1])
    c = x.shape[1]
    _check_matrix(weight, c, c, names[0])
    _check_bias(bias, c, names[1])


def _check_matrix(w: Tensor, rows: int, columns: int, name: str) -> None:
    shape = tuple(w.shape)
    if len(shape) not in (2, 4) or shape != (rows, columns, 1, 1)[: len(shape)]:
        raise ValueError(
            f"{name} must have shape ({rows}, {columns}) or ({rows}, {columns}, 1, 1), got {shape}"
        )


def _check_bias(b: Tensor | None, size: int, name: str) -> None:
    if b is not None and tuple(b.shape) != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(b.shape)}")


def check_padding_mode(mode: object) -> None:
    """Raise unless ``mode`` is one of a convolution over channels.

    Raises:
        ValueError: Another value.
    """
    if mode not in ("zeros", "circular"):
        raise ValueError(f"padding_mode must be 'zeros' or 'circular', got {mode!r}")


def check_efficient_channel_attention(
    x: Tensor, weight: Tensor, padding_mode: str, name: str = "weight"
) -> None:
    """Raise unless the weight of an ECA block fits the map ``x``, which `check_map` accepted.

    Raises:
        TypeError: The weight is not a dense floating-point tensor.
        ValueError: It has the wrong shape or is on another device; an unknown padding mode.
    """
    check_weight(x, weight, name)
    check_padding_mode(padding_mode)
    c, shape = x.shape[1], tuple(weight.shape)
    if len(shape) != 3 or shape[0] not in (1, c) or shape[1] != 1:
        raise ValueError(
            f"{name} must have shape (1, 1, k) or ({c}, 1, k) for x with {c} channels, got {shape}"
        )
    k = shape[2]
    if k % 2 == 0:
        raise ValueError(f"{name} must have an odd length k, got {k}")
    if padding_mode == "circular" and k // 2 > c:
        raise ValueError(
            f"{name} must have a length of at most {2 * c + 1} for circular padding of {c} "
            f"channels, got {k}"
        )


def check_branches(branches: Sequence[Tensor], channels: int | None = None) -> None:
    """Raise unless ``branches`` are 1 to 4 maps of one shape, type and device.

    Raises:
        TypeError: Not a list or tuple; not maps as `check_map` accepts them.
        ValueError: Another number; different shapes, types or devices.
    """
    if not isinstance(branches, (list, tuple)):
        raise TypeError(
            f"branches must be a list or tuple of tensors, got {type(branches).__name__}"
        )
    if not 1 <= len(branches) <= MAX_BRANCHES:
        raise ValueError(f"branches must be 1 to {MAX_BRANCHES} maps, got {len(branches)}")
    x = branches[0]
    check_map(x, channels, "branches[0]")
    for m, u in enumerate(branches):
        if type(u) is not type(x) or u.layout != x.layout or u.is_nested:
            check_map(u, channels, f"branches[{m}]")
        if u.shape == x.shape and u.dtype == x.dtype and u.device == x.device:
            continue
        check_map(u, channels, f"branches[{m}]")
        for what, value, expected in (
            ("shape", tuple(u.shape), tuple(x.shape)),
            ("dtype", u.dtype, x.dtype),
            ("device", u.device, x.device),
        ):
            if value != expected:
                raise ValueError(
                    f"branches[{m}] must have the {what} of branches[0] ({expected}), got {value}"
                )


def check_selective_kernel(
    branches: Sequence[Tensor],
    w_reduce: Tensor,
    b_reduce: Tensor | None,
    w_select: Tensor,
    b_select: Tensor | None,
    prologue: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Raise unless weights and prologue fit the branches, which `check_branches` accepted.

    Raises:
        TypeError: A weight is not a dense floating-point tensor; ``prologue`` is no pair of them.
        ValueError: One has the wrong shape or is on another device.
    """
    x, m = branches[0], len(branches)
    c = x.shape[1]
    for w, name in ((w_reduce, "w_reduce"), (w_select, "w_select")):
        check_weight(x, w, name)
    shape = tuple(w_reduce.shape)
    if len(shape) not in (2, 4) or shape[1:] != (c, 1, 1)[: len(shape) - 1] or shape[0] < 1:
        raise ValueError(
            f"w_reduce must have shape (d, {c}) or (d, {c}, 1, 1) for branches with {c} channels, "
            f"got {shape}"
        )
    d, shape = shape[0], tuple(w_select.shape)
    if len(shape) not in (2, 4) or shape != (m * c, d, 1, 1)[: len(shape)]:
        raise ValueError(
            f"w_select must have shape ({m * c}, {d}) or ({m * c}, {d}, 1, 1) for {m} branches "
            f"with {c} channels, got {shape}"
        )
    for b, size, name in ((b_reduce, d, "b_reduce"), (b_select, m * c, "b_select")):
        if b is not None:
            check_weight(x, b, name)
            if tuple(b.shape) != (size,):
                raise ValueError(f"{name} must have shape ({size},), got {tuple(b.shape)}")
    if prologue is None:
        return
    if not isinstance(prologue, (tuple, list)) or len(prologue) != 2:
        raise TypeError("prologue must be a pair (scale, shift) of tensors")
    for t, name in zip(prologue, ("scale", "shift"), strict=True):
        check_weight(x, t, f"prologue's {name}")
        if tuple(t.shape) != (m, c):
            raise ValueError(f"prologue's {name} must have shape ({m}, {c}), got {tuple(t.shape)}")


def unify_dtypes(
    x: Tensor, weights: Sequence[Tensor | None], names: Sequence[str]
) -> Sequence[Tensor | None]:
    """The weights in a type that the operators take with ``x``; casts them under autocast only.

    Under autocast a 16-bit ``x`` keeps float32 weights, as they are more exact than weights rounded
    to x's type and cost no copy.

    Raises:
        ValueError: The types differ outside autocast.
    """
    dtype = x.dtype
    wrong = None
    for w, name in zip(weights, names, strict=True):
        if w is not None and w.dtype != dtype:
            wrong = name, w.dtype
            break
    if wrong is None:
        return weights
    if not reference.autocast_enabled(x.device.type):
        raise ValueError(
            f"{wrong[0]} must have the dtype of x ({dtype}) outside autocast, got {wrong[1]}"
        )
    target = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    for w in weights:
        if w is not None and w.dtype != target:
            return [None if w is None else w.to(target) for w in weights]
    return weights
