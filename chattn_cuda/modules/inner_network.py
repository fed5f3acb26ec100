"""The layers between the passes of a selective kernel, as numbers or called one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda import activations, ops, reference
from chattn_cuda.hooks import own_behaviour
from chattn_cuda.modules.fused import parameter, pointwise_obstacle

__all__ = ["inner_network"]


def inner_network(
    layers: Mapping[str, Any],
    branches: int,
    samples: int,
    dtype: torch.dtype,
    cardinality: int = 1,
) -> Callable[[Tensor], Tensor]:
    """The function from the mean (N, C) to the logits (N, M, C), both of type ``dtype``.

    Args:
        layers: Four, with their names: a reducing 1x1 convolution, a norm, an activation, and the
            layer whose rows are the logits. Modules of any kind; the usual ones are not called,
            their numbers go into an `ops.Network`.
        branches: M.
        samples: N.
        dtype: The accumulation type of the maps.
        cardinality: The rows are those of so many groups, in each the branches, in each the
            channels.

    Raises:
        ValueError: When called: statistics of a batch of one sample.
    """
    if cardinality == 1 and not torch.compiler.is_compiling():
        plain = _plain_network(layers, branches, samples, dtype)
        if plain is not None:
            return plain
    (reduce_name, reduce), (norm_name, norm), (_, act), (select_name, select) = layers.items()

    def call_layers(pooled: Tensor) -> Tensor:
        h = _inner_norm(norm, norm_name, _small_layer(reduce, reduce_name, pooled))
        z = _small_layer(select, select_name, _called(act, h))
        return z.unflatten(1, (cardinality, branches, -1)).transpose(1, 2).flatten(2)

    return call_layers


def _plain_network(
    layers: Mapping[str, Any], branches: int, samples: int, dtype: torch.dtype
) -> ops.Network | None:
    """The layers' numbers, where calling them would do no more than the formula."""
    (reduce_name, reduce), (_, norm), (_, act), (select_name, select) = layers.items()
    kinds = type(norm), type(act)
    if kinds[0] not in (nn.BatchNorm2d, nn.Identity) or kinds[1] not in (nn.ReLU, nn.Identity):
        return None
    if pointwise_obstacle(reduce, reduce_name) or pointwise_obstacle(select, select_name):
        return None
    if own_behaviour(act) is not None or own_behaviour(norm) is not None:
        return None
    hidden = None
    if kinds[0] is nn.BatchNorm2d:
        hidden = _hidden_norm(norm, dtype)
        if hidden is None or (hidden.of_batch and samples < 2):
            return None
    w1, b1 = parameter(reduce, "weight"), parameter(reduce, "bias")
    w2, b2 = parameter(select, "weight"), parameter(select, "bias")
    if not all(w is None or _is_plain(w) for w in (w1, b1, w2, b2)):
        return None
    if w1.dtype != dtype:
        w1, b1 = w1.to(dtype), None if b1 is None else b1.to(dtype)
    if w2.dtype != dtype:
        w2, b2 = w2.to(dtype), None if b2 is None else b2.to(dtype)
    return ops.Network(branches, w1, b1, w2, b2, hidden, kinds[1] is nn.ReLU)


def _hidden_norm(norm: nn.BatchNorm2d, dtype: torch.dtype) -> ops.HiddenNorm | None:
    """As `nn.BatchNorm2d` chooses between statistics; None where its numbers are not usual."""
    training = norm.training
    updates = training and norm.track_running_stats
    mean, var = parameter(norm, "running_mean"), parameter(norm, "running_var")
    of_batch = training or mean is None
    if training and not updates:
        mean = var = None
    weight, bias = parameter(norm, "weight"), parameter(norm, "bias")
    for t in (mean, var, weight, bias):
        if t is not None and (t.dtype != dtype or not t.is_contiguous() or not _is_plain(t)):
            return None
    # An average over all batches; what PyTorch refuses.
    if norm.momentum is None or (of_batch and norm.eps <= 0):
        return None
    counter = parameter(norm, "num_batches_tracked") if updates else None
    return ops.HiddenNorm(weight, bias, mean, var, counter, of_batch, norm.momentum, norm.eps)


def _is_plain(t: Tensor) -> bool:
    return type(t) is Tensor or type(t) is nn.Parameter


def _small_layer(module: Any, name: str, s: Tensor) -> Tensor:
    """A 1x1 convolution on (N, K) numbers, in their type where nothing else asks to be called."""
    if pointwise_obstacle(module, name) is None:
        bias = None if module.bias is None else module.bias.to(s.dtype)
        with reference.no_autocast(s.device.type):
            return F.linear(s, module.weight.flatten(1).to(s.dtype), bias)
    return _called(module, s)


def _called(module: Any, s: Tensor) -> Tensor:
    """Any module of (N, K, 1, 1) maps, on (N, K) numbers, in its parameters' type."""
    return activations.in_its_type(module, s[:, :, None, None]).flatten(1)


def _inner_norm(module: Any, name: str, s: Tensor) -> Tensor:
    """The normalisation of the hidden values (N, d).

    Raises:
        ValueError: Statistics of a batch of one sample.
    """
    if type(module) is nn.Identity:
        return s
    # Its subclasses may know more samples, on other devices.
    if type(module) is nn.BatchNorm2d and module.training and s.shape[0] == 1:
        raise ValueError(
            f"{name} cannot normalise with the statistics of one sample; train with N >= 2, set "
            f"{name}.eval(), or build the module without it: norm_layer=None; attn_norm_layer=None "
            "of SelectiveKernel; fc='plain' of SelectiveKernelConv and SKConv"
        )
    return _called(module, s)
