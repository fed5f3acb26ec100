"""Batch norms by running statistics, folded into what is before or behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda.hooks import own_behaviour

__all__ = ["as_affine", "as_prologue", "fold_batch_norm"]

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_WITH_ACTIVATION = "timm.layers.norm_act.BatchNormAct2d"  # calls its submodules drop and act
_DROPOUTS = (nn.Dropout, nn.Dropout2d)


def as_affine(bn: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The normalisation as ``scale * x + shift``, both (C,) of type ``dtype``.

    Differentiable in bn's weights.
    """
    scale = torch.rsqrt(bn.running_var.to(dtype) + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight.to(dtype)
    shift = -bn.running_mean.to(dtype) * scale
    return scale, shift if bn.bias is None else shift + bn.bias.to(dtype)


def fold_batch_norm(
    bn: Any, w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None
) -> Sequence[Tensor | None]:
    """The SE weights with a normalisation by running statistics folded into the first layer.

    Differentiable in the weights and in bn's. Computed in float32 for 16-bit weights, and then all
    four are float32, which the operators take with a 16-bit map.
    """
    assert w1 is not None and w2 is not None
    acc = torch.float64 if w1.dtype == torch.float64 else torch.float32
    scale, shift = as_affine(bn, acc)
    return (
        w1.to(acc) * scale.view(-1, *(1 for _ in w1.shape[1:])),
        shift if b1 is None else shift + b1.to(acc) * scale,
        w2.to(acc),
        None if b2 is None else b2.to(acc),
    )


def as_prologue(layers: Sequence[Any], dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """What ``layers`` do to a map one after the other, as the prologue of a pass.

    Args:
        layers: A normalisation first, of the batch norm classes or timm's with an activation; then
            modules of any kind.
        dtype: Of the numbers.

    Returns:
        scale and shift (C,) with ``relu(scale * x + shift)`` the result of the layers, or None
        where they are something else: batch statistics, hooks, other classes.
    """
    norm, *rest = layers
    if f"{type(norm).__module__}.{type(norm).__qualname__}" == _WITH_ACTIVATION:
        rest = [norm.drop, norm.act, *rest]
    elif type(norm) not in _BATCH_NORMS:
        return None
    if norm.training or norm.running_mean is None or own_behaviour(norm) is not None:
        return None
    relus = 0
    for layer in rest:
        if own_behaviour(layer) is not None:
            return None
        if type(layer) is nn.ReLU:
            relus += 1
        elif type(layer) is not nn.Identity and not (
            type(layer) in _DROPOUTS and not layer.training
        ):
            return None
    return as_affine(norm, dtype) if relus else None
