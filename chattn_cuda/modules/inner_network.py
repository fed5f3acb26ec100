"""The layers between the passes of a selective kernel, as numbers or called one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chattn_cuda import activations, ops, reference
from chattn_cuda.hooks import are_as_their_classes
from chattn_cuda.modules.layers import are_pointwise, children, pointwise_obstacle, tensors_at

__all__ = ["NetworkForm", "inner_network", "network_form"]


def inner_network(
    owner: Any, names: Sequence[str], branches: int, u: Tensor, cardinality: int = 1
) -> Callable[[Tensor], Tensor]:
    """The function from the mean (N, C) to the logits (N, M, C), both accumulators.

    Args:
        owner: The module that has the layers.
        names: Of four layers: a reducing 1x1 convolution, a norm, an activation, and the layer
            whose rows are the logits. Modules of any kind; the usual ones are not called, their
            numbers go into an `ops.Network`.
        branches: M.
        u: A branch, or a map that holds them all: its type and N count.
        cardinality: The rows are those of so many groups, in each the branches, in each the
            channels.

    Raises:
        ValueError: When called: statistics of a batch of one sample.
    """
    reduce, norm, act, select = children(owner, *names)
    if not torch.compiler.is_compiling():
        form = network_form(reduce, norm, act, select, cardinality)
        if form is not None:
            tensors = tensors_at(form.places(reduce, norm, act, select))
            plain = form.network(branches, u.shape[0], u.dtype, *tensors)
            if plain is not None:
                return plain
    reduce_name, norm_name, _, select_name = names

    def call_layers(pooled: Tensor) -> Tensor:
        h = _inner_norm(norm, norm_name, _small_layer(reduce, reduce_name, pooled))
        z = _small_layer(select, select_name, _called(act, h))
        return ops.sk.to_branches(z, branches, cardinality)

    return call_layers


class NetworkForm(NamedTuple):
    """What layers are whose numbers make an `ops.Network`.

    Attributes:
        relu: Whether the activation is ReLU; otherwise there is none.
        norm: Of a batch norm: whether it trains, whether it keeps running statistics, its momentum
            and eps. None where there is no norm.
        cardinality: Groups of both layers.
    """

    relu: bool
    norm: tuple[bool, bool, float | None, float] | None
    cardinality: int = 1

    def places(self, reduce: Any, norm: Any, act: Any, select: Any) -> list[tuple[Any, str]]:
        """Where the tensors are that `network` takes."""
        places = [(reduce, "weight"), (reduce, "bias"), (select, "weight"), (select, "bias")]
        if self.norm is not None:
            places += ((norm, "weight"), (norm, "bias"))
            places += ((norm, "running_mean"), (norm, "running_var"))
            if self.norm[:2] == (True, True):  # the count of updates
                places.append((norm, "num_batches_tracked"))
        return places

    def network(
        self, branches: int, samples: int, dtype: torch.dtype, w1: Any, b1: Any, w2: Any, b2: Any,
        *of_norm: Any,
    ) -> ops.Network | None:  # fmt: skip
        """The network; None where its numbers are not usual."""
        for t in (w1, b1, w2, b2):
            if t is not None and type(t) not in _PLAIN:
                return None
        # The operators take numbers of the maps' type, or accumulators.
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        hidden = None
        if self.norm is not None:
            hidden = self._hidden_norm(dtype, acc, *of_norm)
            if hidden is None or (hidden.of_batch and samples < 2):
                return None
        kind = w1.dtype
        if (kind != dtype and kind != acc) or (b1 is not None and b1.dtype != kind):
            w1, b1 = w1.to(acc), None if b1 is None else b1.to(acc)
        kind = w2.dtype
        if (kind != dtype and kind != acc) or (b2 is not None and b2.dtype != kind):
            w2, b2 = w2.to(acc), None if b2 is None else b2.to(acc)
        return ops.Network(branches, w1, b1, w2, b2, hidden, self.relu, self.cardinality)

    def _hidden_norm(
        self, dtype: torch.dtype, acc: torch.dtype, weight: Any, bias: Any, mean: Any, var: Any,
        count: Any = None,
    ) -> ops.HiddenNorm | None:  # fmt: skip
        """As `nn.BatchNorm2d` chooses between statistics; None where its numbers are not usual."""
        assert self.norm is not None
        training, tracks, momentum, eps = self.norm
        updates = training and tracks
        of_batch = training or mean is None
        if training and not updates:
            mean = var = None
        for one, other in ((weight, bias), (mean, var)):
            if one is None and other is None:
                continue
            if type(one) not in _PLAIN or type(other) not in _PLAIN or one.dtype != other.dtype:
                return None
            if one.dtype != dtype and one.dtype != acc:
                return None
        if mean is not None and not (mean.is_contiguous() and var.is_contiguous()):
            return None
        # An average over all batches; what PyTorch refuses.
        if momentum is None or (of_batch and eps <= 0):
            return None
        if not updates:
            count = None
        elif count is not None and (type(count) is not Tensor or count.dtype != torch.int64):
            return None
        return ops.HiddenNorm(weight, bias, mean, var, count, of_batch, momentum, eps)


_PLAIN = (Tensor, nn.Parameter)  # not their subclasses


def network_form(
    reduce: Any, norm: Any, act: Any, select: Any, cardinality: int = 1
) -> NetworkForm | None:
    """The layers' form, where calling them would do no more than an `ops.Network`."""
    normalised, relu = type(norm) is nn.BatchNorm2d, type(act) is nn.ReLU
    if not normalised and type(norm) is not nn.Identity:
        return None
    if not relu and type(act) is not nn.Identity:
        return None
    if not are_pointwise(reduce, select, groups=cardinality):
        return None
    if not are_as_their_classes(reduce, norm, act, select):
        return None
    settings = None
    if normalised:
        settings = norm.training, norm.track_running_stats, norm.momentum, norm.eps
    return NetworkForm(relu, settings, cardinality)


def _small_layer(module: Any, name: str, s: Tensor) -> Tensor:
    """A 1x1 convolution on (N, K) numbers, in their type where nothing else asks to be called."""
    if pointwise_obstacle(module, name) is None:
        with reference.no_autocast(s.device.type):
            return reference.linear(s, module.weight, module.bias)
    return _called(module, s)


def _called(module: Any, s: Tensor) -> Tensor:
    """Any module of (N, K, 1, 1) maps, on (N, K) numbers, in its parameters' type."""
    return activations.in_its_type(module, s[:, :, None, None]).flatten(1)


def _inner_norm(module: Any, name: str, s: Tensor) -> Tensor:
    """The normalisation of the hidden values (N, d).

    Raises:
        ValueError: Statistics of a batch of one sample.
    """
    if type(module) is nn.Identity and are_as_their_classes(module):
        return s
    # Its subclasses may know more samples, on other devices.
    if type(module) is nn.BatchNorm2d and module.training and s.shape[0] == 1:
        raise ValueError(
            f"{name} cannot normalise with the statistics of one sample; train with N >= 2, set "
            f"{name}.eval(), or build the module without it: norm_layer=None; attn_norm_layer=None "
            "of SelectiveKernel; fc='plain' of SelectiveKernelConv and SKConv"
        )
    return _called(module, s)
