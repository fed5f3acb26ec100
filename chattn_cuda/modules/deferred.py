"""Batch norms that wait for what follows them, so that both run as one fused tail.

A block's own forward runs with a `View` in the place of ``self``. Its batch norms give a `Deferred`
map, which remembers what the block does to it: an activation, an attention block, stochastic depth,
an addition. Whoever needs its values gets them, by the fused operators where they know all of it,
else from the layers, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations, backends, functional, ops
from chattn_cuda.hooks import are_as_their_classes
from chattn_cuda.modules.batch_norm import BATCH_NORMS
from chattn_cuda.modules.fused import FusedForward, parameter, tensors_at
from chattn_cuda.ops.tail import Gate, Norm, Tail, apply_tail

__all__ = ["Deferred", "View", "values"]

_IDENTITY = 0, 0.0


def values(x: Any) -> Any:
    """``x`` itself, or the values of a deferred map."""
    return x.values() if type(x) is Deferred else x


class Deferred:
    """What a block has done to a map since its batch norm."""

    __slots__ = ("act", "factors", "gate", "inner", "norm", "residual", "x", "y")

    def __init__(self, x: Tensor, norm: Any) -> None:
        self.x, self.norm = x, norm
        self.inner = self.gate = self.factors = self.residual = self.act = self.y = None

    # ---- what a block does
    def activated(self, layer: Any) -> Any:
        """Behind an activation."""
        if self.gate is not None or self.residual is not None or self.factors is not None:
            self.act = layer
            return self.values()
        if self.inner is not None:
            return layer(self.values())
        self.inner = layer
        return self

    def gated(self, layer: Any) -> Any:
        """Behind an attention block."""
        if self.gate is not None or self.residual is not None or self.factors is not None:
            return layer(self.values())
        self.gate = layer
        return self

    def added(self, other: Any) -> Any:
        """With a residual."""
        other = values(other)
        x = self.x
        if self.residual is not None or type(other) is not Tensor or other.shape != x.shape or (
            other.dtype is not x.dtype or other.device != x.device
        ):
            return self.values() + other
        self.residual = other
        return self

    __add__ = __radd__ = __iadd__ = added

    def __getattr__(self, name: str) -> Any:
        return getattr(self.values(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [values(a) for a in args]
        return function(*args, **{k: values(v) for k, v in (kwargs or {}).items()})

    # ---- and what comes of it
    def values(self) -> Tensor:
        """The map itself."""
        if self.y is None:
            self.y = self._fused()
            if self.y is None:
                self.y = self._by_layers()
        return self.y

    def _by_layers(self) -> Tensor:
        y = self.norm(self.x)
        for layer in (self.inner, self.gate):
            y = y if layer is None else layer(y)
        if self.factors is not None:
            y = y * self.factors
        if self.residual is not None:
            y = y + self.residual
        return y if self.act is None else self.act(y)

    def _fused(self) -> Tensor | None:
        x, norm = self.x, self.norm
        inner, act = _code(self.inner), _code(self.act)
        if functional.why_not_fused(x, ()) is not None or x.numel() == 0 or x.dim() != 4:
            return None
        namespace = backends.get(backends.select("auto", x.device.type, x.dtype)).namespace
        if namespace is None:
            return None
        of_batch = norm.training or norm.running_mean is None
        if of_batch and x.numel() // x.shape[1] < 2:
            return None
        gate, of_gate = None, ()
        if self.gate is not None:
            found = self.gate.operands()
            if isinstance(found, str) or found.call.eps is not None:
                return None
            gate = Gate(found.call.block, found.call.constants)
            of_gate = tensors_at(found.places)[: found.call.tensors]
        elif self.residual is None and self.factors is None:
            inner, act = _IDENTITY, inner  # a norm and an activation
        own, buffers = norm._parameters, norm._buffers
        mean, var = (None, None) if of_batch else (buffers["running_mean"], buffers["running_var"])
        factors = None
        if self.factors is not None:
            factors = self.factors.view(-1, 1).float()
        tail = Tail(Norm(mean, var, norm.eps), gate, inner, act, factors)
        y, mean, var = apply_tail(
            namespace, tail, x, self.residual, own["weight"], own["bias"], *of_gate
        )
        if of_batch and norm.track_running_stats and norm.training:
            _update(norm, mean, var, x.numel() // x.shape[1])
        return y


@torch.no_grad()
def _update(norm: Any, mean: Tensor, var: Tensor, count: int) -> None:
    """The running statistics, as PyTorch updates them."""
    buffers = norm._buffers
    momentum = norm.momentum
    if buffers["num_batches_tracked"] is not None:
        buffers["num_batches_tracked"].add_(1)
        if momentum is None:
            momentum = 1.0 / float(buffers["num_batches_tracked"])
    buffers["running_mean"].lerp_(mean.to(buffers["running_mean"].dtype), momentum)
    buffers["running_var"].lerp_(var.to(buffers["running_var"].dtype) * (count / (count - 1)), momentum)


def _code(layer: Any) -> tuple[int, float]:
    if layer is None:
        return _IDENTITY
    activation, param = activations.resolve(layer)
    return activation.code, param


class View:
    """A module whose layers may give and take deferred maps."""

    __slots__ = ("_layers", "_module")

    def __init__(self, module: Any) -> None:
        self._module = module
        self._layers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        layers = self._layers
        if name in layers:
            return layers[name]
        module = self._module
        child = module._modules.get(name)
        if child is None:
            return getattr(module, name)
        layers[name] = made = _view(child)
        return made


def _view(layer: Any) -> Callable[..., Any]:
    kind = type(layer)
    if are_as_their_classes(layer):
        if kind in BATCH_NORMS:
            return lambda x: Deferred(values(x), layer)
        if kind.__name__ == "BatchNormAct2d" and type(layer.drop) is nn.Identity:
            norm = layer
            act = layer.act
            if activations.resolve(act) is not None:
                def both(x: Any) -> Any:
                    made = Deferred(values(x), norm)
                    if type(act) is not nn.Identity:
                        made.inner = act
                    return made
                return both
        if kind is nn.Identity:
            return lambda x: x
        if isinstance(layer, FusedForward) and getattr(layer, "_fusible", False):
            return lambda x: x.gated(layer) if type(x) is Deferred else layer(x)
        if activations.resolve(layer) is not None:
            return lambda x: x.activated(layer) if type(x) is Deferred else layer(x)
        if kind is nn.Sequential:
            parts = [_view(part) for part in layer]
            def sequence(x: Any) -> Any:
                for part in parts:
                    x = part(x)
                return x
            return sequence
        if kind.__name__ in ("ConvNormAct",):
            view = View(layer)
            return lambda x: kind.forward(view, x)
    return lambda *args: layer(*map(values, args))
