"""`accelerate` and `restore`, and the classes that they give to modules."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

import torch
from torch import nn

from chattn_cuda import backends
from chattn_cuda.convert import probe
from chattn_cuda.convert.adapter import ADAPTERS, STRUCTURES, Adapter
from chattn_cuda.convert.report import Entry, Report
from chattn_cuda.modules.fused import FusedForward

__all__ = ["accelerate", "restore"]


def accelerate(model: nn.Module, backend: str = "auto") -> Report:
    """Let the channel-attention blocks inside ``model`` run fused, in place.

    Known are the SE and ECA blocks of timm (``SEModule``, ``SqueezeExcite`` of the EfficientNet
    family, ``EffectiveSEModule``, ``SqueezeExciteCl``, ``EcaModule``, ``CecaModule``, the
    ``SEModule`` of legacy senets, ``SelectiveKernelAttn``, ``SelectiveKernel``, ``SplitAttn``) and
    torchvision (``SqueezeExcitation``), and modules that are built like other libraries'
    (``SELayer``, ``ChannelSELayer``, ``SE``, ``eca_layer``, ``MBConvBlock``, ...): those are
    accepted when a copy with random weights gives, in float64, what the block's formula gives.
    Results, state_dict keys, parameters, hooks, ``isinstance``, deepcopy and pickle stay as they
    were. Modules that are already accelerated get the new ``backend``.

    Args:
        model: Any module, also one of these blocks itself.
        backend: "auto" or one of `chattn_cuda.backends.names()`. A program of `torch.export` gets
            plain operations with "auto", and keeps the operators of a backend that is named.

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
        cls: Any = type(module)
        entry = functools.partial(Entry, name, _base(cls).__name__)
        if _base(cls) is not cls:
            module.backend = backend
            left.append(entry(f"already accelerated (backend is now {backend!r})"))
            continue
        if isinstance(module, (FusedForward, torch.jit.ScriptModule)):  # fused, or compiled
            continue
        key = _key_of(module)
        if key is None:
            continue
        reason = _obstacle(module, key)
        if reason is not None:
            left.append(entry(reason))
            continue
        try:
            module.__class__ = _accelerated(cls, key)
        except TypeError as error:  # a metaclass, __init_subclass__, __slots__
            left.append(entry(f"its class cannot be extended: {error}"))
            continue
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
    exported = sys.modules.get("torch.export.exported_program")  # its import takes long
    if exported is not None and isinstance(model, exported.ExportedProgram):
        raise TypeError(
            "model must be a torch.nn.Module, got an ExportedProgram: accelerate the model before "
            "torch.export"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _key_of(module: Any) -> str | None:
    """The adapter for ``module``: a class's (or its nearest base's) name, or a structure's."""
    origin = _origin(type(module))
    if origin is not None:
        return _qualified_name(origin)
    return next((name for name, a in STRUCTURES.items() if a.fits and a.fits(module)), None)


def _adapter(key: str) -> Adapter:
    adapter = ADAPTERS.get(key) or STRUCTURES.get(key)
    if adapter is None:  # a pickle from a version that knew more classes
        raise TypeError(f"{key} is nothing that chattn_cuda can accelerate")
    return adapter


def _origin(cls: Any) -> Any:
    """``cls`` or its nearest base that has an adapter."""
    return next((base for base in cls.__mro__ if _qualified_name(base) in ADAPTERS), None)


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _obstacle(module: Any, key: str) -> str | None:
    """Why ``module`` must keep its own forward."""
    cls: Any = type(module)
    adapter = _adapter(key)
    if "forward" in module.__dict__:
        return "it has a forward of its own"
    if key in ADAPTERS:
        origin = _origin(cls)
        for method in adapter.methods:
            if getattr(cls, method, None) is not getattr(origin, method):
                return f"it overrides the {method} of {origin.__name__}"
    own = {*module.__dict__, *module._parameters, *module._buffers, *module._modules}
    for name in dir(adapter.mixin):
        if name.startswith("__") or name == "forward":
            continue
        if name in own or hasattr(cls, name):
            return f"it has an attribute {name!r} of its own"
    reason = adapter.obstacle(module)
    if reason is None and key in STRUCTURES:
        reason = probe.difference(module, _accelerated(cls, key))
    return reason


def _base(cls: Any) -> Any:
    """The class that an accelerated class was made from; any other class itself."""
    return cls.__dict__.get("_accelerated_from", cls)


@functools.cache
def _accelerated(cls: Any, key: str) -> Any:
    """The accelerated subclass of ``cls``, always the same one."""
    return type(
        f"Accelerated{cls.__name__}",
        (_adapter(key).mixin, cls),
        {
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "__reduce_ex__": _reduce,
            "eager_forward": _renamed(cls.forward, "eager_forward"),
            "_accelerated_from": cls,
            "_accelerated_as": key,
        },
    )


def _renamed(function: Any, name: str) -> Any:
    """The same function under another name: TorchScript compiles a method by its own name."""
    if not isinstance(function, types.FunctionType):
        return function
    copy = types.FunctionType(
        function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = function.__annotations__
    return copy


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickle by the original class: the accelerated one is in no module."""
    base = _base(type(self))
    _, _, *state = base.__reduce_ex__(self, protocol)
    return _rebuild, (base, type(self)._accelerated_as), *state


def _rebuild(base: Any, key: str) -> Any:
    """An empty accelerated module, for pickle to fill."""
    cls = _accelerated(base, key)
    return cls.__new__(cls)
