"""Batch norms by running statistics, folded into what is before or behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations, ops, reference
from chattn_cuda.hooks import are_as_their_classes, class_of
from chattn_cuda.ops.sk.prologue import RELU

__all__ = ["BATCH_NORMS", "as_prologue", "fold_batch_norm"]

#: Of maps.
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_WITH_ACTIVATION = ("timm.layers.norm_act", "BatchNormAct2d")  # calls its submodules drop and act
_DROPOUTS = (nn.Dropout, nn.Dropout2d)
_IDENTITY = activations.ACTIVATIONS["identity"].code, 0.0


def fold_batch_norm(
    eps: float, w1: Any, b1: Any, w2: Any, b2: Any, weight: Any, bias: Any, mean: Any, var: Any
) -> list[Tensor | None]:
    """The SE weights with a normalisation by running statistics folded into the first layer.

    Differentiable in the weights and in the norm's. Computed in float32 for 16-bit weights, and
    then all four are float32, which the operators take with a 16-bit map. The graph keeps no
    bias, which may change before the backward.
    """
    acc = reference.accumulation_dtype(w1.dtype)
    # Every operation and every call counts: the numbers are few.
    numbers = []
    for t in (w1, b1, w2, b2, weight, bias, mean, var):
        numbers.append(t if t is None or t.dtype == acc else t.to(acc))
    w1, b1, w2, b2, weight, bias, mean, var = numbers
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    if b1 is not None:
        mean = mean - b1
    shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    return [w1 * scale.view(-1, *(1,) * (w1.dim() - 1)), shift, w2, b2]


def as_prologue(stages: Sequence[Sequence[Any]], slices: int = 1) -> ops.Prologue | None:
    """What layers do to maps, those of each stage one after the other, as the prologue of a pass.

    Args:
        stages: For each the layers: a normalisation first, of the batch norm classes or timm's with
            an activation; then modules of any kind. Their maps are the branches, or one map holds
            all of those.
        slices: How many branches lie in one map.

    Returns:
        The prologue, or None where the layers do something else: batch statistics, hooks, other
        classes, several activations (but ReLUs), one that the kernels lack for so many branches.
    """
    norms: list[ops.Norm] = []
    modules: list[Any] = []
    acts: list[tuple[int, float]] = []
    for norm, *rest in stages:
        kind = class_of(norm)
        if (kind.__module__, kind.__qualname__) == _WITH_ACTIVATION:
            rest = [norm._modules["drop"], norm._modules["act"], *rest]
        elif kind not in BATCH_NORMS:
            return None
        own, buffers = norm._parameters, norm._buffers
        # Somebody may have put something else there. (torch.compile of 2.11 compares no sets.)
        if "weight" not in own or "bias" not in own:
            return None
        if "running_mean" not in buffers or "running_var" not in buffers:
            return None
        mean, var = buffers["running_mean"], buffers["running_var"]
        if norm.training or mean is None or var is None:
            return None
        modules += (norm, *rest)
        act = _IDENTITY
        for layer in rest:
            if type(layer) in _DROPOUTS and not layer.training:
                continue
            found = activations.of_layer(layer)
            if found is None:
                return None
            known = found[0].code, found[1]
            if act == _IDENTITY:
                act = known
            elif known != _IDENTITY and (act != RELU or known != RELU):
                return None
        acts.append(act)
        norms.append((own["weight"], own["bias"], mean, var, norm.eps))
    for act in acts[1:]:  # count() compares objects, which torch.compile with dynamic sizes is not
        if act != acts[0]:
            return None
    if not are_as_their_classes(*modules):
        return None
    prologue = ops.Prologue(None, norms, acts[0])
    return prologue if prologue.fits(max(len(stages), slices)) else None
