"""What a block's own forward sees as ``self``: layers that give and take deferred maps.

A layer that does more than its class says (hooks, a forward of its own), and every class that is
not known here, is called as it is, with the values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chattn_cuda import activations
from chattn_cuda.hooks import are_as_their_classes, class_of, qualified_name
from chattn_cuda.methods import is_own
from chattn_cuda.modules.batch_norm import BATCH_NORMS
from chattn_cuda.modules.deferred import Deferred, Drop, values
from chattn_cuda.modules.fused import FusedForward

__all__ = ["PARTS", "TOGETHER", "Run", "View", "run"]

TOGETHER = ("cuda",)
"""Types of devices on which torch.nn.SyncBatchNorm asks other processes, and tails do."""


class Run:
    """A call of a block.

    Norms that ask other processes do so in the order of the block's layers, as these would, and
    their gradients in the reverse: another process may run the layers, of a smaller map for one.
    So a map that waits behind such a norm waits no longer than until the next one begins.

    Attributes:
        backend: By which to run.
    """

    def __init__(self, backend: str) -> None:
        """A call by ``backend``."""
        self.backend = backend
        self._last: Deferred | None = None  # behind a norm that asks others

    def asks(self, x: Deferred | None) -> None:
        """Have the norm that asked last be done, before that of ``x``."""
        last, self._last = self._last, x
        if last is not None:
            last.values()

    def layer(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a layer as it is, with the values."""
        if self._last is not None:
            if any(isinstance(m, nn.SyncBatchNorm) for m in layer.modules()):
                self.asks(None)
        return layer(*map(values, args), **kwargs)


class View:
    """A module whose layers may give and take deferred maps."""

    def __init__(self, run: Run, module: Any) -> None:
        """Of ``module``, in a block's call."""
        self._run, self._module = run, module

    def __getattr__(self, name: str) -> Any:
        """A layer as it is seen, or what else the module has."""
        layer = self._module._modules.get(name)
        if layer is None:
            return getattr(self._module, name)
        if type(layer) is nn.ModuleList:
            return [_seen(self._run, part) for part in layer]
        return _seen(self._run, layer)


def _seen(run: Run, layer: Any) -> Callable[..., Any]:
    """A layer as a function that may give and take deferred maps."""
    if are_as_their_classes(layer):
        kind: Any = type(layer)
        look = _look(kind)
        found = None if look is None else look(run, layer)
        if found is not None:
            return found
    return functools.partial(run.layer, layer)


def run(backend: str, block: Any, x: Tensor) -> Tensor:
    """An accelerated block's own forward with deferred maps; of a batch norm the norm itself."""
    kind: Any = type(block)
    look = _look(kind)
    call = Run(backend)
    found = None if look is None else look(call, block)
    if found is None:
        y = values(kind.eager_forward(View(call, block), x))
    else:
        y = values(found(x))
    call.asks(None)
    return y  # type: ignore[no-any-return]


def _look(kind: Any) -> Callable[[Run, Any], Any] | None:
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


def _as_norm(run: Run, layer: Any) -> Any:
    """A batch norm as a function; None where it must run as it is."""
    if isinstance(layer, nn.SyncBatchNorm) and layer.training:
        if torch.compiler.is_compiling():
            return None  # it may have to ask other processes
        return lambda x: _together(run, layer, values(x))
    return lambda x: Deferred(run, values(x), layer)


def _together(run: Run, layer: Any, x: Tensor) -> Any:
    """A map behind a norm that asks other processes where there are any."""
    if not (dist.is_available() and dist.is_initialized()):
        return Deferred(run, x, layer)
    if x.device.type not in TOGETHER:
        return run.layer(layer, x)
    group = layer.process_group or dist.group.WORLD
    return Deferred(run, x, layer, group if dist.get_world_size(group) > 1 else None)


def _as_norm_act(run: Run, layer: Any) -> Any:
    """The same for a batch norm with an activation."""
    if type(layer.drop) is not nn.Identity or not are_as_their_classes(layer.drop):
        return None
    act, norm = layer.act, _as_norm(run, layer)
    if norm is None or activations.resolve(act) is None:
        return None
    if type(act) is nn.Identity:
        return norm
    return lambda x: norm(x).activated(act)


def _as_drop_path(run: Run, layer: Any) -> Any:
    return _dropping(layer, layer.drop_prob, layer.scale_by_keep)


def _as_stochastic_depth(run: Run, layer: Any) -> Any:
    return _dropping(layer, layer.p, True) if layer.mode == "row" else None


def _dropping(layer: Any, p: float, scaled: bool) -> Any:
    if p == 0.0 or not layer.training:
        return _same
    drop = Drop(1 - p, scaled)
    return lambda x: x.dropped(layer, drop) if type(x) is Deferred else layer(x)


def _as_attention(run: Run, layer: Any) -> Any:
    if layer._complete is not None:
        return None
    return lambda x: x.gated(layer) if type(x) is Deferred else run.layer(layer, x)


def _as_activation(run: Run, layer: Any) -> Any:
    if type(layer) is nn.Identity:
        return _same
    if activations.of_layer(layer) is None:  # its class was changed
        return None
    return lambda x: x.activated(layer) if type(x) is Deferred else layer(x)


def _as_sequence(run: Run, layer: Any) -> Any:
    if class_of(layer).forward is not nn.Sequential.forward:
        return None
    parts = [_seen(run, part) for part in layer]

    def sequence(x: Any) -> Any:
        for part in parts:
            x = part(x)
        return x

    return sequence


def _as_block(run: Run, layer: Any) -> Any:
    cls = class_of(layer)
    if not is_own(cls, "forward"):
        return None
    return lambda x: cls.forward(View(run, layer), x)


_OTHERS: dict[str, Callable[[Run, Any], Any]] = {
    "timm.layers.norm_act.BatchNormAct2d": _as_norm_act,
    "timm.layers.norm_act.SyncBatchNormAct": _as_norm_act,
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
