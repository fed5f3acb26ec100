"""What the code of a forward asks for that no recording and no trial on small maps shows.

Settings of the process, and what a tensor is beside its numbers. Neither is looked at in later
calls, so that a forward which asks is left.
"""

from __future__ import annotations

import enum
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda.methods import Names, is_installed, names_of

__all__ = ["asks", "sees_parameters"]

_MISSING = object()
#: Of tensors. Sizes, types and devices are no such: the operators' checks look at them.
_OF_TENSORS = (
    "requires_grad", "requires_grad_", "grad", "_grad", "grad_fn", "is_leaf", "retains_grad",
    "retain_grad", "register_hook", "output_nr", "_base", "_version", "_is_view", "is_shared",
    "is_pinned", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta", "is_sparse", "is_quantized",
    "is_inference", "is_conj", "is_neg", "storage_offset", "untyped_storage", "data_ptr",
    "get_device", "_backward_hooks", "itemsize", "element_size",
)  # fmt: skip
#: Any attribute of anything, variables, and identities: attributes, and functions.
_OF_ANYTHING = frozenset(
    "__dict__ __getattribute__ __getattr__ attrgetter methodcaller import_module suppress".split()
)
_FUNCTIONS_OF_ANYTHING = frozenset("vars dir id globals locals eval __import__".split())
#: Of modules, whose changes are not looked at.
_OF_MODULES = frozenset(nn.Module().__dict__) - {
    "training",
    "_parameters",
    "_buffers",
    "_modules",
}
#: Types and devices that no trial has.
_TYPES = frozenset("float16 half bfloat16".split())
_DEVICES = frozenset("cuda cpu mps xpu".split())
#: Which of a module's parameters there are.
_LISTS = frozenset(
    """
    parameters named_parameters buffers named_buffers state_dict get_parameter get_buffer
    _parameters _buffers isinstance
    """.split()
)
#: Modules of functions that compute, or do not depend on the process.
_TORCH = frozenset(("torch.functional", "torch.nn.functional", "torch.utils.checkpoint"))
_NATIVE = frozenset(f"torch._C._{name}" for name in ("nn", "linalg", "fft", "special"))
_PYTHON = frozenset(
    """
    abc builtins collections contextlib copy dataclasses enum functools itertools logging math
    numbers operator random re string types typing warnings
    """.split()
)
#: Whether a script or a trace is being made: the class's own forward runs there.
_HARMLESS = frozenset(
    (
        "torch._jit_internal.is_scripting", "torch.jit._trace.is_tracing", "torch.is_tensor",
        "torch._assert", "torch.jit.annotate", "torch.jit._script._unwrap_optional",
    )
)  # fmt: skip
_NUMBERS = frozenset("pi inf nan e newaxis __version__".split())


def asks(module: Any, functions: list[Any]) -> str | None:
    """What the ``functions`` of a forward ask for, the first; None: nothing."""
    inside = {name for m in module.modules() for name in m.__dict__}
    for function in functions:
        around = inspect.getclosurevars(function).nonlocals
        values = {**function.__globals__, **around}
        for names in names_of(function):
            for found in (*_named(names, inside), *_asked(module, names, values)):
                return found
            for path in sorted(names.paths):
                if (setting := _setting(path, values)) is not None:
                    return setting
    given = [
        v for f in functions for v in (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values())
    ]
    every = {name for f in functions for n in names_of(f) for name in n.named | n.quoted}
    own = (value for name, value in module.__dict__.items() if name in every)
    return next((f"{_name_of(v)}()" for v in (*given, *own) if not _is_constant(v)), None)


def sees_parameters(module: Any, names: list[Names]) -> bool:
    """Whether a forward may see which layers and parameters there are, and their sizes."""
    own = {name for m in module.modules() for name in (*m._parameters, *m._buffers)}
    return any(not (own | _LISTS).isdisjoint(n.named | n.quoted) for n in names)


def _named(names: Names, inside: set[str]) -> Iterator[str]:
    every = names.named | names.quoted
    yield from (name for name in _OF_TENSORS if name in every and name not in inside)
    yield from sorted(_OF_ANYTHING & every | _FUNCTIONS_OF_ANYTHING & names.globals)
    yield from sorted(_OF_MODULES & every)
    elsewhere = _TYPES & names.named | _DEVICES & names.quoted
    yield from (f"whether something is {name}" for name in sorted(elsewhere - inside))
    yield from (f"the module {name}" for name in sorted(names.imported))
    if names.catches:
        yield "what fails inside it (except)"


def _asked(module: Any, names: Names, values: dict[str, Any]) -> Iterator[str]:
    """Attributes by their names of what is no module."""
    for function, (root, *path) in sorted(names.asked):
        owner = module if root == "self" else values.get(root)
        for name in path:
            owner = getattr(owner, name, None)
        if not (isinstance(owner, nn.Module) or owner is F):
            yield f"attributes of {'.'.join((root, *path))} ({function})"


def _setting(path: tuple[str, ...], values: dict[str, Any]) -> str | None:
    """What a path of globals reads, if that may be another thing later; see `reads`, too."""
    value = values.get(path[0], _MISSING)
    home = None
    for count, name in enumerate(path[1:], 1):
        if not isinstance(value, types.ModuleType) and (not _is_torchs(value) or callable(value)):
            path = path[:count]
            break
        home, value = value, getattr(value, name, _MISSING)
    if isinstance(value, _FUNCTIONS):
        name = ".".join(path) if len(path) > 1 else _name_of(value)
        return None if _is_constant(value) else f"{name}()"
    if isinstance(value, type):
        a_kind = issubclass(value, Tensor) and value is not Tensor
        return f"whether a tensor is a {value.__name__}" if a_kind else None
    if isinstance(value, types.ModuleType):  # an attribute of it is read elsewhere
        if value is F or isinstance(value, _OPERATORS):
            return None
        root = value.__name__.partition(".")[0]
        known = root == "torch" or root in sys.stdlib_module_names
        return f"the module {'.'.join(path)}" if known else None
    of_torch = isinstance(home, types.ModuleType) and home.__name__.partition(".")[0] == "torch"
    if value is _MISSING or isinstance(value, _VALUES) or path[-1] in _NUMBERS:
        return None
    return ".".join(path) if of_torch or _is_torchs(home) else None


_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_OPERATORS = (torch._ops._OpNamespace, torch._ops._Ops)
_VALUES = (
    enum.Enum, torch.dtype, torch.memory_format, torch.layout,
    torch._ops.OpOverload, torch._ops.OpOverloadPacket,
)  # fmt: skip


def _is_torchs(value: Any) -> bool:
    return str(type(value).__module__).partition(".")[0] == "torch"


def _is_constant(value: Any) -> bool:
    """Whether it is no function that says something of the process, as far as is known."""
    if not isinstance(value, _FUNCTIONS):
        return True
    home = value.__module__ or ""
    root = home.partition(".")[0]
    if root in sys.stdlib_module_names:
        return root.lstrip("_") in _PYTHON
    if root != "torch":  # code that is not installed is looked at, see `chattn_cuda.methods`
        return not is_installed(value) or not _takes_nothing(value)
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        return owner is None or getattr(owner, "__name__", "") in _NATIVE
    return home in _TORCH or _name_of(value) in _HARMLESS


def _takes_nothing(function: Any) -> bool:
    """Whether it may be called without arguments, as timm's ``is_exportable()``."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_argcount == len(function.__defaults__ or ())


def _name_of(function: Any) -> str:
    return f"{function.__module__}.{function.__name__}"
