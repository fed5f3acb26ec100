"""Acceleration of existing models: `accelerate` and `restore`.

A module is accelerated by giving it another class: a subclass of its own, with the fused forward in
front. Its parameters, buffers, hooks, state_dict keys and ``isinstance`` relations stay what they
are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from chattn_cuda import activations, backends, convert_sk
from chattn_cuda.modules.efficient_channel_attention import (
    CircularEfficientChannelAttentionForward,
    EfficientChannelAttentionForward,
)
from chattn_cuda.modules.fused import FusedForward, submodule_obstacle
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward

__all__ = ["ADAPTERS", "Adapter", "Entry", "Report", "accelerate", "restore"]


@dataclass(frozen=True)
class Adapter:
    """How to accelerate one class of a model library.

    Attributes:
        mixin: The forward to put in front; it reads the class's own submodules, and its
            eager_forward must compute exactly what the class's forward does.
        obstacle: ``obstacle(module)`` returns why this instance would never take the fused path.
    """

    mixin: type[FusedForward]
    obstacle: Callable[[Any], str | None]


def _timm_se_obstacle(module: Any) -> str | None:
    """Lasting obstacles only; forward itself looks for hooks and batch statistics."""
    for name in ("fc1", "fc2"):
        if type(getattr(module, name)) is not nn.Conv2d:
            return submodule_obstacle(getattr(module, name), name, nn.Conv2d)
    bn = type(module.bn)
    if bn not in (nn.Identity, nn.BatchNorm2d, nn.SyncBatchNorm):
        return f"bn is a {bn.__name__}"
    if activations.resolve(module.act) is None:
        return f"the kernels do not know act ({type(module.act).__name__})"
    return _gate_obstacle(module)


def _timm_eca_obstacle(module: Any) -> str | None:
    """Lasting obstacles only, as above."""
    if type(module.conv) is not nn.Conv1d:
        return submodule_obstacle(module.conv, "conv", nn.Conv1d)
    if getattr(module, "conv2", None) is not None:
        return "the kernels do not know the gate with an MLP (use_mlp)"
    if module.conv.bias is not None:
        return "conv has a bias"
    return _gate_obstacle(module)


def _gate_obstacle(module: Any) -> str | None:
    gate = activations.resolve(module.gate)
    if gate is None or not gate[0].is_gate:
        return f"the kernels do not know gate ({type(module.gate).__name__})"
    return None


ADAPTERS: dict[str, Adapter] = {
    "timm.layers.squeeze_excite.SEModule": Adapter(SqueezeExciteForward, _timm_se_obstacle),
    "timm.layers.eca.EcaModule": Adapter(EfficientChannelAttentionForward, _timm_eca_obstacle),
    "timm.layers.eca.CecaModule": Adapter(
        CircularEfficientChannelAttentionForward, _timm_eca_obstacle
    ),
    **{name: Adapter(mixin, convert_sk.obstacle) for name, mixin in convert_sk.FORWARDS.items()},
}


@dataclass(frozen=True)
class Entry:
    """One module in a `Report`: its name in the model, its class, and what happened to it."""

    name: str
    cls: str
    note: str


@dataclass(frozen=True)
class Report:
    """What `accelerate` or `restore` did; ``print`` it.

    Attributes:
        model: The model, changed in place.
        action: "accelerated" or "restored".
        changed: The modules that were changed.
        left: The modules of known classes that were not, and why.
    """

    model: nn.Module
    action: str
    changed: tuple[Entry, ...]
    left: tuple[Entry, ...]

    def __str__(self) -> str:
        """A line per group of alike modules."""
        if not self.changed and not self.left:
            known = ", ".join(ADAPTERS)
            return f"0 modules {self.action}: {type(self.model).__name__} holds none of {known}"
        lines = [f"{len(self.changed)} modules {self.action}, {len(self.left)} left as they are"]
        for title, entries in ((self.action, self.changed), ("left", self.left)):
            groups: dict[tuple[str, str], list[str]] = {}
            for e in entries:
                groups.setdefault((e.cls, e.note), []).append(e.name or "(the model itself)")
            for (cls, note), found in groups.items():
                shown = ", ".join(found[:3]) + (f", ... ({len(found)})" if len(found) > 3 else "")
                lines.append(f"  {title}: {cls} {shown}: {note}")
        return "\n".join(lines)


def accelerate(model: nn.Module, backend: str = "auto") -> Report:
    """Let the channel-attention blocks inside ``model`` run fused, in place.

    Known so far: timm's ``SEModule``, ``EcaModule``, ``CecaModule``, ``SelectiveKernelAttn``,
    ``SelectiveKernel`` and ``SplitAttn``. Results, state_dict keys, parameters, hooks,
    ``isinstance``, deepcopy and pickle stay as they were. Modules that are already accelerated get
    the new ``backend``.

    Args:
        model: Any module, also one of these blocks itself.
        backend: "auto" or one of `chattn_cuda.backends.names()`.

    Returns:
        A printable `Report` of what was changed, what was not and why; the model is
        ``report.model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: Unknown backend.

    Example:
        >>> model = timm.create_model("seresnet50")
        >>> print(chattn_cuda.accelerate(model))
    """
    _check(model)
    backends.check_name(backend, auto=True)
    changed, left = [], []
    for name, module in model.named_modules():
        cls = type(module)
        entry = functools.partial(Entry, name, _base(cls).__name__)
        if _base(cls) is not cls:
            module.backend = backend
            left.append(entry(f"already accelerated (backend is now {backend!r})"))
            continue
        known = _adapter_of(cls)
        if known is None:
            continue
        adapter, origin = known
        reason = adapter.obstacle(module)
        if getattr(cls, "forward", None) is not origin.forward:
            reason = f"it overrides the forward of {origin.__name__}"
        elif "forward" in module.__dict__:
            reason = "it has a forward of its own"
        if reason is not None:
            left.append(entry(reason))
            continue
        module.__class__ = _accelerated(cls)
        module.backend = backend
        changed.append(entry(f"backend {backend!r}"))
    return Report(model, "accelerated", tuple(changed), tuple(left))


def restore(model: nn.Module) -> Report:
    """Undo `accelerate`: every accelerated module gets its own class back.

    Args:
        model: Any module.

    Returns:
        A printable `Report`; the model is ``report.model``.

    Raises:
        TypeError: ``model`` is not a module.
    """
    _check(model)
    changed = []
    for name, module in model.named_modules():
        base = _base(type(module))
        if base is not type(module):
            module.__class__ = base
            module.__dict__.pop("_backend", None)
            changed.append(Entry(name, base.__name__, "its own forward"))
    return Report(model, "restored", tuple(changed), ())


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _adapter_of(cls: Any) -> tuple[Adapter, Any] | None:
    """The adapter for ``cls`` or the nearest base that has one, and that class."""
    for base in cls.__mro__:
        adapter = ADAPTERS.get(f"{base.__module__}.{base.__qualname__}")
        if adapter is not None:
            return adapter, base
    return None


def _base(cls: Any) -> Any:
    """The class that an accelerated class was made from; any other class itself."""
    return cls.__dict__.get("_accelerated_from", cls)


@functools.cache
def _accelerated(cls: Any) -> Any:
    """The accelerated subclass of ``cls``, always the same one."""
    known = _adapter_of(cls)
    if known is None:  # a pickle from a version that knew more classes
        raise TypeError(f"{cls.__name__} is not a class that chattn_cuda can accelerate")
    return type(
        f"Accelerated{cls.__name__}",
        (known[0].mixin, cls),
        {
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "__reduce_ex__": _reduce,
            "_accelerated_from": cls,
        },
    )


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickle by the original class: the accelerated one is in no module."""
    base = _base(type(self))
    _, _, *state = base.__reduce_ex__(self, protocol)
    return _rebuild, (base,), *state


def _rebuild(base: Any) -> Any:
    """An empty accelerated module, for pickle to fill."""
    cls = _accelerated(base)
    return cls.__new__(cls)
