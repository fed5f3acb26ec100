"""What the forward of a class reads beside its input, from its code.

A recording or a trial shows what a forward did with the numbers that it found; the code shows where
it found them, and what must therefore still be the same when the operators stand for it.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import nn

from chattn_cuda.methods import bases_with, functions_in, names_in, names_of

__all__ = ["attributes_read", "unknown_source"]

_MISSING = object()
# Globals that hold no numbers of their own.
_CODE = (
    types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type,
    types.MethodDescriptorType, torch.jit.ScriptFunction,
)  # fmt: skip


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


def unknown_source(module: Any, cls: Any) -> str | None:
    """What the forward of ``cls`` reads that is in no module: of the class, computed, or global.

    Numbers there may change without a trace in ``module``. None: there is nothing such.
    """
    if any("__class__" in n.named for n in names_in(cls)):
        return "its own class"
    for name in sorted({name for n in names_in(cls) for name in n.named | n.quoted}):
        if name in module.__dict__ or hasattr(nn.Module, name) or name.startswith("__"):
            continue
        value = next((b.__dict__[name] for b in bases_with(cls, name)), _MISSING)
        if value is _MISSING or isinstance(value, (types.FunctionType, staticmethod)):
            continue
        return f"the {'property' if isinstance(value, property) else 'class attribute'} {name}"
    for function in functions_in(cls):
        scope = function.__globals__
        for name, value in inspect.getclosurevars(function).nonlocals.items():
            if name != "__class__" and not isinstance(value, _CODE):
                return f"the variable {name} of the function around it"
        for name in sorted({name for n in names_of(function) for name in n.globals}):
            value = scope.get(name, _MISSING)
            if value is not _MISSING and not isinstance(value, _CODE):
                return f"the global {name}"
    return None
