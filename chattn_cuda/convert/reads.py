"""What the forward of a class reads beside its input, from its code.

A recording or a trial shows what a forward did with the numbers that it found; the code shows where
it found them, and what must therefore still be the same when the operators stand for it.
"""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from chattn_cuda.convert.asks import asks
from chattn_cuda.methods import bases_with, functions_in, is_plain, names_in, names_of

__all__ = ["attributes_read", "side_effect", "unknown_source"]

_MISSING = object()
# Globals that hold no numbers of their own.
_CODE = (
    types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type,
    types.MethodDescriptorType, torch.jit.ScriptFunction, staticmethod, classmethod, property,
)  # fmt: skip
# Globals that may have numbers in their attributes, unless they are of these packages.
_HOLDERS = (types.ModuleType, types.FunctionType, type)
_CONSTANT = frozenset(("torch", "math", "builtins"))
_MOST = 16  # of them, one in another
# What tells, or sets, the mode that a call is made in; what users see of it beside its result.
_MODES = frozenset(
    """
    is_autocast_enabled is_autocast_cpu_enabled get_autocast_dtype autocast
    is_inference_mode_enabled is_inference is_grad_enabled enable_grad
    is_initialized get_rank get_world_size
    """.split()
)
_EFFECTS = frozenset(
    """
    print record_function open write writelines write_text write_bytes save savez dump setattr
    delattr exec debug info warning error exception critical put
    add_scalar add_histogram add_image
    """.split()
)


def attributes_read(module: Any, cls: Any) -> set[str]:
    """The attributes of ``module`` itself, no submodules, that the forward of ``cls`` may read.

    With those that are not there, but would be read by their quoted name, and its buffers.
    """
    found = set()
    elsewhere = {*module._modules, *module._parameters, *module._buffers}
    own = {*module.__dict__, *module._buffers}
    for n in names_in(cls):
        found |= {name for name in n.named | n.quoted if name in own}
        found |= {name for name in n.quoted - elsewhere if not hasattr(cls, name)}
    return found


def unknown_source(module: Any, cls: Any, inner: bool = False) -> str | None:
    """What the forward of ``cls`` reads that is in no module: of the class, computed, or global.

    Numbers there may change without a trace in ``module``. None: there is nothing such. Those of
    the class of an ``inner`` module are looked at in every call.
    """
    for n in names_in(cls):
        if "__class__" in n.named or "type" in n.globals:
            return "its own class"
        for name in sorted(_MODES & n.named):
            return f"the mode ({name})"
    if bases_with(cls, "__getattr__") or bases_with(cls, "__getattribute__"):
        return "attributes that its class computes"
    if (asked := asks(module, list(functions_in(cls)))) is not None:
        return asked
    for name in sorted({name for n in names_in(cls) for name in n.named | n.quoted}):
        if name in module.__dict__ or hasattr(nn.Module, name) or name.startswith("__"):
            continue
        value = next((b.__dict__[name] for b in bases_with(cls, name)), _MISSING)
        if value is _MISSING or isinstance(value, (types.FunctionType, staticmethod)):
            continue
        if inner and is_plain(value):
            continue
        return f"the {'property' if isinstance(value, property) else 'class attribute'} {name}"
    own = (module.__dict__.get(name) for name in attributes_read(module, cls))
    functions = (f for f in own if isinstance(f, types.FunctionType) and not _is_constant(f))
    for function in (*functions_in(cls), *functions):
        for found in _sources_of(function):
            return found
    return None


def side_effect(cls: Any) -> str | None:
    """What it is that makes a call of ``cls`` more than its result, or another; None: nothing."""
    if cls.forward is not cls.forward:  # a partialmethod: nobody could see that it changed
        return "is another function at each call"
    for n in names_in(cls):
        for name in sorted(_EFFECTS & n.named):
            return f"calls {name}, which others see"
        for name in sorted(n.stored):
            return f"sets {name}, which others see"
    return None


def _sources_of(function: Any) -> Iterator[str]:
    """Of what is in neither a module nor a class: variables around it, globals, defaults."""
    for name, value in inspect.getclosurevars(function).nonlocals.items():
        if name != "__class__" and not isinstance(value, _CODE):
            yield f"the variable {name} of the function around it"
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    if not all(is_plain(value) or isinstance(value, (*_CODE, torch.dtype)) for value in defaults):
        yield f"a default of {function.__name__}"
    named = {name for n in names_of(function) for name in n.named}
    values = {name: function.__globals__.get(name, _MISSING) for n in names_of(function)
              for name in sorted(n.globals)}  # fmt: skip
    for path, value in values.items():
        if value is _MISSING:
            continue
        if not isinstance(value, _CODE):
            yield f"the global {path}"
        holders = [(path, value)] if isinstance(value, _HOLDERS) else []
        for holder_path, holder in holders:
            for name in () if _is_constant(holder) else sorted(named & {*vars(holder)}):
                inner = vars(holder)[name]
                if isinstance(inner, (types.ModuleType, type)) and len(holders) < _MOST:
                    holders.append((f"{holder_path}.{name}", inner))
                elif not isinstance(inner, (*_CODE, enum.Enum)):
                    yield f"the global {holder_path}.{name}"


def _is_constant(holder: Any) -> bool:
    """Whether it belongs to torch or the interpreter, whose attributes stay as they are."""
    home = holder.__name__ if isinstance(holder, types.ModuleType) else holder.__module__
    return (home or "").partition(".")[0] in _CONSTANT
