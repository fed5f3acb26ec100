"""What a block's own forward sees as ``self``: layers that give and take deferred maps.

A layer that does more than its class says (hooks, a forward of its own), and every class that is
not known here, is called as it is, with the values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from chattn_cuda import activations
from chattn_cuda.hooks import are_as_their_classes, class_of, qualified_name
from chattn_cuda.methods import is_own
from chattn_cuda.modules.batch_norm import BATCH_NORMS
from chattn_cuda.modules.deferred import Deferred, Drop, values
from chattn_cuda.modules.fused import FusedForward

__all__ = ["PARTS", "View", "run"]


class View:
    """A module whose layers may give and take deferred maps."""

    def __init__(self, backend: str, module: Any) -> None:
        """Of ``module``, by ``backend``."""
        self._backend, self._module = backend, module

    def __getattr__(self, name: str) -> Any:
        """A layer as it is seen, or what else the module has."""
        layer = self._module._modules.get(name)
        if layer is None:
            return getattr(self._module, name)
        if type(layer) is nn.ModuleList:
            return [_seen(self._backend, part) for part in layer]
        return _seen(self._backend, layer)


def _seen(backend: str, layer: Any) -> Callable[..., Any]:
    """A layer as a function that may give and take deferred maps."""
    if are_as_their_classes(layer):
        kind: Any = type(layer)
        look = _look(kind)
        found = None if look is None else look(backend, layer)
        if found is not None:
            return found
    return lambda *args, **kwargs: layer(*map(values, args), **kwargs)


def run(backend: str, block: Any, x: Tensor) -> Tensor:
    """An accelerated block's own forward with deferred maps; of a batch norm the norm itself."""
    kind: Any = type(block)
    look = _look(kind)
    found = None if look is None else look(backend, block)
    if found is None:
        return values(kind.eager_forward(View(backend, block), x))  # type: ignore[no-any-return]
    return values(found(x))  # type: ignore[no-any-return]


def _look(kind: Any) -> Callable[[str, Any], Any] | None:
    """How layers of a class are seen; None: as they are."""
    return _HOW.get(_name_of(kind))


def _name_of(kind: Any) -> str:
    """Of a class in `_HOW`: a constant to torch.compile, which a function would not be."""
    return _found_name(kind)


_name_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.lru_cache(256)
def _found_name(kind: Any) -> str:
    cls = kind.__dict__.get("_accelerated_from", kind)
    if issubclass(kind, FusedForward) and kind._fusible:
        return "attention"
    if cls in BATCH_NORMS:
        return "norm"
    if issubclass(cls, nn.Sequential):
        return "sequence"
    if cls is nn.Identity or activations.resolve(cls) is not None:
        return "activation"
    return qualified_name(cls)


def _same(x: Any) -> Any:
    return x


def _as_norm(backend: str, layer: Any) -> Any:
    """A batch norm as a function; None where it must run as it is."""
    if type(layer) is nn.SyncBatchNorm and layer.training:
        return None  # it may have to ask other processes
    return lambda x: Deferred(backend, values(x), layer)


def _as_norm_act(backend: str, layer: Any) -> Any:
    """The same for a batch norm with an activation."""
    if type(layer.drop) is not nn.Identity or not are_as_their_classes(layer.drop):
        return None
    act = layer.act
    if activations.resolve(act) is None:
        return None
    if type(act) is nn.Identity:
        return lambda x: Deferred(backend, values(x), layer)
    return lambda x: Deferred(backend, values(x), layer).activated(act)


def _as_drop_path(backend: str, layer: Any) -> Any:
    return _dropping(layer, layer.drop_prob, layer.scale_by_keep)


def _as_stochastic_depth(backend: str, layer: Any) -> Any:
    return _dropping(layer, layer.p, True) if layer.mode == "row" else None


def _dropping(layer: Any, p: float, scaled: bool) -> Any:
    if p == 0.0 or not layer.training:
        return _same
    drop = Drop(1 - p, scaled)
    return lambda x: x.dropped(layer, drop) if type(x) is Deferred else layer(x)


def _as_attention(backend: str, layer: Any) -> Any:
    if layer._complete is not None:
        return None
    return lambda x: x.gated(layer) if type(x) is Deferred else layer(x)


def _as_activation(backend: str, layer: Any) -> Any:
    if type(layer) is nn.Identity:
        return _same
    if activations.of_layer(layer) is None:  # its class was changed
        return None
    return lambda x: x.activated(layer) if type(x) is Deferred else layer(x)


def _as_sequence(backend: str, layer: Any) -> Any:
    if class_of(layer).forward is not nn.Sequential.forward:
        return None
    parts = [_seen(backend, part) for part in layer]

    def sequence(x: Any) -> Any:
        for part in parts:
            x = part(x)
        return x

    return sequence


def _as_block(backend: str, layer: Any) -> Any:
    cls = class_of(layer)
    if not is_own(cls, "forward"):
        return None
    return lambda x: cls.forward(View(backend, layer), x)


_OTHERS: dict[str, Callable[[str, Any], Any]] = {
    "timm.layers.norm_act.BatchNormAct2d": _as_norm_act,
    "timm.layers.drop.DropPath": _as_drop_path,
    "torchvision.ops.stochastic_depth.StochasticDepth": _as_stochastic_depth,
    "timm.layers.conv_bn_act.ConvNormAct": _as_block,
}
#: Classes of other libraries whose forwards are known here.
PARTS = tuple(_OTHERS)
_HOW = _OTHERS | {
    "attention": _as_attention,
    "norm": _as_norm,
    "sequence": _as_sequence,
    "activation": _as_activation,
}
