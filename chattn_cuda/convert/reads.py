"""What the forward of a class reads beside its input, from its code.

A recording or a trial shows what a forward did with the numbers that it found; the code shows where
it found them, and what must therefore still be the same when the operators stand for it.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Names", "attributes_read", "bases_with", "methods_called", "unknown_source"]

_MISSING = object()
# Globals that hold no numbers of their own.
_CODE = (
    types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type,
    types.MethodDescriptorType, torch.jit.ScriptFunction,
)  # fmt: skip


class Names(NamedTuple):
    """What code names: attributes and globals, strings for getattr, and which it loads globally."""

    named: frozenset[str]
    quoted: frozenset[str]
    globals: frozenset[str]


def bases_with(cls: Any, name: str) -> list[Any]:
    """``cls`` and those of its bases, up to ``nn.Module``, that define a method."""
    mro = cls.__mro__
    end = mro.index(nn.Module) if nn.Module in mro else len(mro)
    return [base for base in mro[:end] if name in base.__dict__]


def methods_called(cls: Any, name: str = "forward") -> tuple[str, ...]:
    """``name`` and the methods of ``cls`` that it calls, and they call, through super() too."""
    found = [name]
    for method in found:
        for code in _codes(cls, method):
            for other in _names(code).named:
                function = getattr(cls, other, None)
                own = isinstance(function, types.FunctionType) and not hasattr(nn.Module, other)
                if own and other not in found:
                    found.append(other)
    return tuple(found[:1] + sorted(found[1:]))


def attributes_read(module: Any, cls: Any) -> set[str]:
    """The attributes of ``module`` itself, no submodules, that the forward of ``cls`` may read.

    With those that are not there, but would be read by their quoted name, and its buffers.
    """
    found = set()
    elsewhere = {*module._modules, *module._parameters, *module._buffers}
    own = {*module.__dict__, *module._buffers}
    for names in _names_in(cls):
        found |= {name for name in names.named | names.quoted if name in own}
        found |= {name for name in names.quoted - elsewhere if not hasattr(cls, name)}
    return found


def unknown_source(module: Any, cls: Any) -> str | None:
    """What the forward of ``cls`` reads that is in no module: of the class, computed, or global.

    Numbers there may change without a trace in ``module``. None: there is nothing such.
    """
    if any("__class__" in names.named for names in _names_in(cls)):
        return "its own class"
    for name in sorted({name for n in _names_in(cls) for name in n.named | n.quoted}):
        if name in module.__dict__ or hasattr(nn.Module, name) or name.startswith("__"):
            continue
        value = next((b.__dict__[name] for b in bases_with(cls, name)), _MISSING)
        if value is _MISSING or isinstance(value, (types.FunctionType, staticmethod)):
            continue
        return f"the {'property' if isinstance(value, property) else 'class attribute'} {name}"
    for method in methods_called(cls):
        for base in bases_with(cls, method):
            function = inspect.unwrap(getattr(base, method))
            scope = getattr(function, "__globals__", {})
            for name, value in inspect.getclosurevars(function).nonlocals.items():
                if name != "__class__" and not isinstance(value, _CODE):
                    return f"the variable {name} of the function around it"
            for code in _codes(base, method, alone=True):
                for name in sorted(_names(code).globals):
                    value = scope.get(name, _MISSING)
                    if value is not _MISSING and not isinstance(value, _CODE):
                        return f"the global {name}"
    return None


def _names_in(cls: Any) -> Iterator[Names]:
    for method in methods_called(cls):
        yield from map(_names, _codes(cls, method))


def _codes(cls: Any, method: str, alone: bool = False) -> Iterator[Any]:
    """The code of a method, of those that it overrides (unless ``alone``), and what lies inside."""
    functions = [getattr(cls, method)]
    if not alone:
        functions += [base.__dict__[method] for base in bases_with(cls, method)]
    for function in functions:
        code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
        codes = [] if code is None else [code]
        for code in codes:
            yield code
            codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]


@functools.lru_cache(maxsize=1024)
def _names(code: Any) -> Names:
    strings = (c for c in code.co_consts if isinstance(c, str) and c.isidentifier())
    loads = (i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")
    return Names(frozenset(code.co_names), frozenset(strings), frozenset(loads))
