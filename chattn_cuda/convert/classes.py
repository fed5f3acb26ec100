"""The classes that `accelerate` gives to modules.

Such a class stands for the forward that its base had, and for the methods that this one calls. It
looks at every call whether they are still the same ones: somebody may have patched the class.
"""

from __future__ import annotations

import dataclasses
import inspect
import linecache
import sys
import types
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from chattn_cuda.convert import dataflow, inside, probe
from chattn_cuda.convert.adapter import ADAPTERS, STRUCTURES, Adapter
from chattn_cuda.hooks import qualified_name
from chattn_cuda.methods import (
    Member,
    bases_with,
    changed,
    code_of,
    helpers,
    is_own,
    methods_called,
)

__all__ = [
    "accelerated",
    "adapter_for",
    "base_of",
    "calls_more_than",
    "is_stale",
    "origin_of",
    "replaced",
    "why_not_as",
    "why_not_undone",
]


def base_of(cls: Any) -> Any:
    """The class that an accelerated class was made from; any other class itself."""
    return cls.__dict__.get("_accelerated_from", cls)


def why_not_undone(cls: Any) -> str | None:
    """Why a module of ``cls`` is accelerated, but not by that class; None: it is not so."""
    made = next((b.__name__ for b in cls.__mro__[1:] if "_accelerated_from" in b.__dict__), None)
    if made is None or "_accelerated_from" in cls.__dict__:
        return None
    return f"its class was made from {made} since, as fully_shard and parametrizations do"


def adapter_for(key: str) -> Adapter:
    """The adapter of a class's or a structure's name.

    Raises:
        TypeError: There is none, as for a pickle from a version that knew more.
    """
    adapter = ADAPTERS.get(key) or STRUCTURES.get(key)
    if adapter is None and key.startswith(dataflow.PREFIX):
        adapter = dataflow.adapter(key)
    if adapter is None:
        raise TypeError(f"{key} is nothing that chattn_cuda can accelerate")
    return adapter


def origin_of(cls: Any) -> Any:
    """``cls`` or its nearest base that has an adapter."""
    return next((base for base in cls.__mro__ if qualified_name(base) in ADAPTERS), None)


def accelerated(cls: Any, key: str, module: Any = None) -> Any:
    """The accelerated subclass of ``cls``: the same one, while there are modules of it.

    ``module``: for which it is; None where that is not known yet, for pickle to fill.
    """
    found = inside.NOTHING
    if module is not None and key not in ADAPTERS:
        found = inside.look(module, cls, adapter_for(key).within)
    for sub in type.__subclasses__(cls):  # which keeps none of them alive
        own = sub.__dict__
        if base_of(sub) is not cls or "_is_whole" not in own:  # or its __init_subclass__ raised
            continue
        if own["_accelerated_as"] == key and own["_inside"] == found and _may_be_shared(sub):
            return sub
    return _make(cls, key, found)


def why_not_as(module: Any, cls: Any) -> str | None:
    """Why ``module`` is not what it would be as of the accelerated class ``cls``; None: it is."""
    key, base = cls._accelerated_as, base_of(cls)
    if key in ADAPTERS:
        return None
    unknown = inside.unknown_source(module, base, adapter_for(key).within)
    if unknown is not None:
        return f"it is built like the block, but reads {unknown}, which may change"
    reason = probe.difference(module, cls)
    return reason or dataflow.why_more(module, adapter_for(key).recorded)


def _may_be_shared(cls: Any) -> bool:
    """Whether another module may have an accelerated class.

    One that stands for a library's own methods serves patched ones, too: it runs them, and is fast
    again when they go. What a structure's methods are is tried out anew.
    """
    if cls._accelerated_as in ADAPTERS:
        return all(type(member.value) is not object for member in cls._stands_for)
    return not is_stale(cls)


def is_stale(cls: Any) -> bool:
    """Whether a class has been patched since ``cls`` was made from it."""
    return next(changed(cls._stands_for), None) is not None


def replaced(key: str, cls: Any) -> str | None:
    """Why the methods of ``cls`` are not those that the adapter stands for; None: they are."""
    origin = origin_of(cls) if key in ADAPTERS else cls
    for owner, name, function in _methods(key, cls):
        if function is None:
            if owner is cls and getattr(cls, name, None) is not getattr(origin, name):
                return f"it overrides the {name} of {origin.__name__}"
            owner = origin if owner is cls else owner
            return f"the {name} of {owner.__name__} was replaced"
    return None


def calls_more_than(cls: Any, mixin: Any) -> str | None:
    """The parameters of a forward, where they are not what ``mixin`` takes."""
    try:
        own = list(inspect.signature(cls.forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return "unknown"
    takes = len(inspect.signature(mixin._fused_or_eager).parameters) - 1
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(own) == takes and all(p.kind in plain for p in own):
        return None
    return ", ".join(str(p.replace(annotation=p.empty)) for p in own) or "nothing"


def _methods(key: str, cls: Any) -> Iterator[tuple[Any, str, Any]]:
    """Class, name and function of all that an accelerated ``cls`` stands for.

    None in place of the function where the adapter is for a library's class, and the function is
    not that of its source.
    """
    origin = origin_of(cls) if key in ADAPTERS else None
    for name in methods_called(origin or cls):
        function = getattr(cls, name, None)
        own = origin is None or (function is getattr(origin, name) and is_own(origin, name))
        yield cls, name, function if own else None
        if origin is None:  # super() may call them
            for base in bases_with(cls, name):
                if base is not cls and getattr(base, name) is not function:
                    yield base, name, getattr(base, name)
    if origin is None:
        yield from (helper[:3] for helper in helpers(cls))
    for part in adapter_for(key).parts:
        module, _, name = part.rpartition(".")
        owner = getattr(sys.modules.get(module), name, None)
        for method in () if owner is None else methods_called(owner):
            yield owner, method, getattr(owner, method) if is_own(owner, method) else None


def _make(cls: Any, key: str, found: inside.Inside) -> Any:
    mixin: Any = adapter_for(key).mixin
    # What is nobody's own function is never the same: the class's forward runs.
    stands_for = tuple(
        Member(owner, name, object() if function is None else function, code_of(function))
        for owner, name, function in _methods(key, cls)
    )
    body = {
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce,
        "explain": _explain,
        "forward": _forward(cls, mixin, stands_for),
        "eager_forward": _renamed(cls.forward, "eager_forward"),
        "_accelerated_from": cls,
        "_accelerated_as": key,
        "_stands_for": stands_for,
        "_inside": found,
        "_reads": (*mixin._reads, *found.reads),
        "__jit_unused_properties__": [
            *mixin.__jit_unused_properties__,
            *getattr(cls, "__jit_unused_properties__", ()),
        ],
    }
    if key not in ADAPTERS:
        body |= {"__setstate__": _set_state, "operands": _operands(mixin)}
    made: Any = type(f"Accelerated{cls.__name__}", (mixin, cls), body)
    made._is_whole = True
    return made


def _operands(mixin: Any) -> Any:
    @torch.jit.unused
    def operands(self: Any) -> Any:
        """What the operators take of the layers, or why they do not cover them."""
        reason = inside.are_patched(type(self)) or inside.why_changed(self, type(self)._inside)
        return reason or mixin.operands(self)

    return operands


_FORWARD = """\
def make(_mixin, _fast, _base, {knowns}):
    def forward(self, {parameters}):
        if not torch.jit.is_scripting():
            if isinstance(self, _mixin) and {unchanged}:
                return _fast(self, {arguments})
            return _base.forward(self, {arguments})
        return self.eager_forward({arguments})
    return forward
"""


def _forward(cls: Any, mixin: Any, stands_for: tuple[Member, ...]) -> Any:
    """The forward, with the names of the parameters that the class has.

    TorchScript, torch.fx and torch.export read them from the source or the code, so it is made from
    source, as dataclasses are. Somebody may have kept it from before `restore`.
    """
    own = cls.forward
    if calls_more_than(cls, mixin) or any(type(member.value) is object for member in stands_for):
        return lambda self, *args, **kwargs: cls.forward(self, *args, **kwargs)
    parameters = list(inspect.signature(own).parameters.values())[1:]
    arguments = [p.name for p in parameters]
    count = sum(p.kind is p.POSITIONAL_ONLY for p in parameters)
    tests = []
    values = {"_mixin": mixin, "_fast": mixin._fused_or_eager, "_base": cls}
    for i, (owner, name, known, code) in enumerate(stands_for):
        values |= {f"_owner{i}": owner, f"_known{i}": known, f"_code{i}": code}
        if owner is cls and name != "forward":  # somebody may set it on this class, or a module
            tests.append(f"type(self).{name} is _known{i} and {name!r} not in self.__dict__")
        else:
            tests.append(f"_owner{i}.{name} is _known{i}")
        if code is not None:
            tests.append(f"_known{i}.__code__ is _code{i}")
    source = _FORWARD.format(
        knowns=", ".join(list(values)[3:]),
        parameters=", ".join([*arguments[:count], *["/"] * (count > 0), *arguments[count:]]),
        arguments=", ".join(arguments),
        unchanged=" and ".join(tests),
    )
    file = f"<chattn_cuda forward {zlib.crc32(source.encode()):08x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    scope: dict[str, Any] = {}
    exec(compile(source, file, "exec"), {"torch": torch}, scope)
    forward = scope["make"](**values)
    for attribute in ("__doc__", "__defaults__", "__annotations__"):
        setattr(forward, attribute, getattr(own, attribute, None) or getattr(forward, attribute))
    forward.__module__, forward.__qualname__ = cls.__module__, f"{cls.__qualname__}.forward"
    return forward


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


@torch.jit.unused
def _explain(self: Any, *args: Any, **kwargs: Any) -> Any:
    """How the forward would run; see `chattn_cuda.explain`."""
    cls = type(self)
    own = base_of(cls)
    bound = inspect.signature(own.forward).bind(self, *args, **kwargs)
    explained = adapter_for(cls._accelerated_as).mixin.explain(self, *bound.args[1:2])
    found = dataclasses.replace(explained, cls=own.__name__)
    on_module = (m for m in cls._stands_for if m.owner is own and m.name in self.__dict__)
    for owner, name, *_ in (*changed(cls._stands_for), *on_module):
        reason = f"the {name} of {owner.__name__} was replaced"
        return dataclasses.replace(
            found, backend="reference", path="eager", reasons=(reason,), notes=()
        )
    return found


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickle by the original class: the accelerated one is in no module."""
    base = base_of(type(self))
    _, _, *state = base.__reduce_ex__(self, protocol)
    return _rebuild, (base, type(self)._accelerated_as), *state


def _rebuild(base: Any, key: str) -> Any:
    """An empty accelerated module, for pickle to fill."""
    cls = accelerated(base, key)
    return cls.__new__(cls)


def _set_state(self: Any, state: Any) -> None:
    """Fill a module known by structure: where it is loaded, its class may compute another thing."""
    cls: Any = type(self)
    self.__class__ = base_of(cls)
    self.__setstate__(state)
    key = cls._accelerated_as
    if key.startswith(dataflow.PREFIX) and dataflow.key_of(self) != key:
        return
    cls = accelerated(base_of(cls), key, self)
    if why_not_as(self, cls) is None:
        self.__class__ = cls
