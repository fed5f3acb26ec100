"""What a block's own forward sees as ``self``: layers that give and take deferred maps.

A layer that does more than its class says (hooks, a forward of its own), and every class that is
not known here, is called as it is, with the values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from chattn_cuda import activations
from chattn_cuda.hooks import are_as_their_classes, class_of
from chattn_cuda.modules.batch_norm import BATCH_NORMS
from chattn_cuda.modules.deferred import Deferred, Drop, is_attention, values

__all__ = ["PARTS", "View", "as_norm"]

_NORM_ACT = "timm.layers.norm_act.BatchNormAct2d"
_DROP_PATH = "timm.layers.drop.DropPath"
_STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth.StochasticDepth"
_NESTED = ("timm.layers.conv_bn_act.ConvNormAct",)
#: Classes of other libraries whose forwards are known here.
PARTS = (_NORM_ACT, _DROP_PATH, _STOCHASTIC_DEPTH, *_NESTED)


class View:
    """A module whose layers may give and take deferred maps."""

    __slots__ = ("_backend", "_layers", "_module")

    def __init__(self, backend: str, module: Any) -> None:
        """Of ``module``, by ``backend``."""
        self._backend, self._module = backend, module
        self._layers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """A layer as it is seen, or what else the module has."""
        found = self._layers.get(name)
        if found is None:
            layer = self._module._modules.get(name)
            if layer is None:
                return getattr(self._module, name)
            found = self._layers[name] = seen(self._backend, layer)
        return found


def seen(backend: str, layer: Any) -> Callable[..., Any]:
    """A layer as a function that may give and take deferred maps."""
    if are_as_their_classes(layer):
        cls = class_of(layer)
        for look in (as_norm, _as_drop, _as_attention, _as_activation, _as_container):
            found = look(backend, layer, cls)
            if found is not None:
                return found
    return lambda *args, **kwargs: layer(*map(values, args), **kwargs)


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _same(x: Any) -> Any:
    return x


def as_norm(backend: str, layer: Any, cls: Any) -> Any:
    """A batch norm, perhaps with an activation, as a function; None for other layers."""
    if cls in BATCH_NORMS:
        if cls is nn.SyncBatchNorm and layer.training:
            return None  # it may have to ask other processes
        return lambda x: Deferred(backend, values(x), layer)
    if _name_of(cls) != _NORM_ACT or type(layer.drop) is not nn.Identity:
        return None
    if activations.resolve(layer.act) is None or not are_as_their_classes(layer.drop):
        return None

    def with_activation(x: Any) -> Any:
        found = Deferred(backend, values(x), layer)
        return found if type(layer.act) is nn.Identity else found.activated(layer.act)

    return with_activation


def _as_drop(backend: str, layer: Any, cls: Any) -> Any:
    name = _name_of(cls)
    if name == _DROP_PATH:
        p, scaled = layer.drop_prob, layer.scale_by_keep
    elif name == _STOCHASTIC_DEPTH and layer.mode == "row":
        p, scaled = layer.p, True
    else:
        return None
    if p == 0.0 or not layer.training:
        return _same
    drop = Drop(1 - p, scaled)
    return lambda x: x.dropped(layer, drop) if type(x) is Deferred else layer(x)


def _as_attention(backend: str, layer: Any, cls: Any) -> Any:
    if not is_attention(layer):
        return None
    return lambda x: x.gated(layer) if type(x) is Deferred else layer(x)


def _as_activation(backend: str, layer: Any, cls: Any) -> Any:
    if cls is nn.Identity:
        return _same
    if activations.resolve(layer) is None:
        return None
    return lambda x: x.activated(layer) if type(x) is Deferred else layer(x)


def _as_container(backend: str, layer: Any, cls: Any) -> Any:
    if issubclass(cls, nn.Sequential) and cls.forward is nn.Sequential.forward:
        parts = [seen(backend, part) for part in layer]

        def sequence(x: Any) -> Any:
            for part in parts:
                x = part(x)
            return x

        return sequence
    if _name_of(cls) in _NESTED:
        view = View(backend, layer)
        return lambda x: cls.forward(view, x)
    return None
