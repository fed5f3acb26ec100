"""What was found out about a module's layers, for as long as it holds.

Whether a module's own layers are what the operators compute takes many looks: classes, hooks,
settings, activations. `remember` keeps the answer with everything that it was read from, and
`recall` looks at just that, in one pass. It keeps no module and no tensor, only what they were
like, and nothing in the module itself: copies, pickles and attributes stay as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from torch import nn

from chattn_cuda.hooks import has_hooks, has_own_forward
from chattn_cuda.methods import OF_EVERY_MODULE, Member, behaviour, held, is_fixed, is_plain

__all__ = ["kept", "recall", "remember"]

Place = tuple[Any, str]
"""A layer (None: there is none) and the name of its parameter or buffer."""

#: The settings of layers that are looked at; of other classes it is every plain attribute.
_SETTINGS: dict[type, tuple[str, ...]] = {
    nn.Conv2d: ("kernel_size", "groups", "padding"),
    nn.Conv1d: (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
        "padding_mode",
    ),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d), ("training", "eps", "momentum", "track_running_stats")
    ),
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
    nn.GELU: ("approximate",),
    nn.AdaptiveAvgPool1d: ("output_size",),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.AdaptiveAvgPool3d: ("output_size",),
    **{
        cls: ()
        for cls in (nn.Linear, nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Mish,
                    nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Sequential, nn.ModuleList)
    },
}  # fmt: skip


_ELSEWHERE = OF_EVERY_MODULE - {"training"}  # these are looked at there


class _Memory:
    """How a module was when its layers were looked at, and what was found."""

    __slots__ = (
        "cls", "found", "held", "inner", "members", "names", "own", "owner", "places", "steps",
        "values",
    )  # fmt: skip

    def __init__(self, owner: Any, reads: Sequence[str], found: Any) -> None:
        self.owner: Any = None
        self.cls = type(owner)
        self.found = found
        plain = (name for name in reads if "." not in name and name != "_parameters")
        self.own = ("_backend", *plain)
        #: of all layers their parameters and buffers, or None where nobody asks for them
        self.held: list[Any] | None = [] if "_parameters" in reads else None
        #: what is read of layers, by their paths
        self.inner: dict[str, list[str]] = {}
        for path, _, name in (name.rpartition(".") for name in reads if "." in name):
            self.inner.setdefault(path, []).append(name)
        self.values = tuple(map(owner.__dict__.get, self.own))
        self.names = tuple(owner._modules)
        #: (place of the parent, name, class, getter of settings or None, what it gave, names of its
        #: children or None, how many attributes it has or None), a parent before its children
        self.steps: list[tuple[int, str, type, Any, Any, Any, Any]] = []
        #: what the forwards of layers that are not torch's find in their classes
        self.members: dict[Member, None] = {}
        #: (place of the layer, "_parameters" or "_buffers", name), or None
        self.places: list[tuple[int, str, str] | None] = []


_memories: dict[int, _Memory] = {}


def remember(owner: Any, places: Sequence[Place], reads: Sequence[str], found: Any) -> None:
    """Keep ``found`` for as long as the module ``owner`` and all in it are as they are now.

    Not where a layer does more than its class says (hooks, a forward of its own), or has a setting
    that may change in place.

    Args:
        owner: The module.
        places: The tensors that `recall` shall return.
        reads: The owner's attributes that ``found`` depends on, besides its backend; those of
            layers with their paths; "_parameters" for which parameters all have, and their sizes.
        found: Anything that keeps no module and no tensor.
    """
    memory = _Memory(owner, reads, found)
    index = {id(owner): 0}
    if not all(map(is_plain, memory.values)) or not _add_steps(memory, owner, index):
        return
    if memory.held is not None:
        attributes = [owner.__dict__]
        for parent, child, *_ in memory.steps:
            layer = attributes[parent]["_modules"][child]
            attributes.append({} if layer is None else layer.__dict__)
        memory.held = list(map(held, attributes))
    for layer, name in places:
        if layer is None:
            memory.places.append(None)
            continue
        kept = next((k for k in ("_parameters", "_buffers") if name in layer.__dict__[k]), None)
        if kept is None or id(layer) not in index:
            return
        memory.places.append((index[id(layer)], kept, name))
    key = id(owner)

    def forget(reference: Any) -> None:
        if (now := _memories.get(key)) is not None and now.owner is reference:
            _memories.pop(key, None)

    memory.owner = weakref.ref(owner, forget)
    _memories[key] = memory


def _add_steps(memory: _Memory, parent: Any, index: dict[int, int], prefix: str = "") -> bool:
    """Add what lies in ``parent``, a layer under each of its names; False: it cannot be kept."""
    at = index[id(parent)]
    for name, layer in parent._modules.items():
        if layer is None:
            memory.steps.append((at, name, type(None), None, None, None, None))
            continue
        own, settings = layer.__dict__, _SETTINGS.get(type(layer))
        read, count = memory.inner.get(prefix + name), None
        if settings is None or read is not None:  # what comes later may be read, too
            count = len(own)
        if settings is None:
            settings = tuple(n for n, v in own.items() if n not in _ELSEWHERE and is_plain(v))
        elif not all(n in own and is_plain(own[n]) for n in settings):
            return False
        settings += tuple(n for n in read or () if n in own)
        cls = type(layer).__dict__.get("_accelerated_from", type(layer))
        if not is_fixed(cls):
            memory.members |= dict.fromkeys(behaviour(cls))
        if has_own_forward(own) or has_hooks(layer):
            return False
        if id(layer) in index and (own["_parameters"] or own["_buffers"]):
            return False  # whoever replaces it in one place leaves it in the other
        get, names = itemgetter(*settings) if settings else None, tuple(layer._modules) or None
        memory.steps.append((at, name, type(layer), get, get and get(own), names, count))
        index[id(layer)] = len(memory.steps)
        if names and not _add_steps(memory, layer, index, f"{prefix}{name}."):
            return False
    return True


def kept(owner: Any) -> Any:
    """What was kept of ``owner``, whether it still holds or not; None where nothing was."""
    memory = _memories.get(id(owner))
    return memory.found if memory is not None and memory.owner() is owner else None


def recall(owner: Any) -> tuple[Any, list[Any]] | None:
    """What was kept, with the tensors as they are now; None where anything is different."""
    memory = _memories.get(id(owner))
    if memory is None or memory.owner() is not owner or type(owner) is not memory.cls:
        return None
    attributes = [owner.__dict__]
    try:
        if tuple(map(owner.__dict__.get, memory.own)) != memory.values:
            return None
        if tuple(owner._modules) != memory.names:
            return None
        for parent, name, cls, settings, values, names, count in memory.steps:
            layer = attributes[parent]["_modules"][name]
            if type(layer) is not cls:
                return None
            if layer is None:
                attributes.append({})
                continue
            own = layer.__dict__
            attributes.append(own)
            # As has_hooks and has_own_forward, without a call.
            if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"]:
                return None
            if own["_backward_pre_hooks"] or "forward" in own or "_conv_forward" in own:
                return None
            if settings is not None and settings(own) != values:
                return None
            if names is not None and tuple(own["_modules"]) != names:
                return None
            if count is not None and len(own) != count:
                return None
        if memory.held is not None and list(map(held, attributes)) != memory.held:
            return None
        for cls, name, value, code in memory.members:
            now = getattr(cls, name, None)
            if now is not value or getattr(now, "__code__", None) is not code:
                return None
        tensors: list[Any] = []
        for place in memory.places:
            if place is None:
                tensors.append(None)
            else:
                at, kept, name = place
                tensors.append(attributes[at][kept][name])
    except (KeyError, RuntimeError, ValueError):  # it is gone, or a tensor or array came for it
        return None
    return memory.found, tensors
