"""What the methods of a class are now, and what their code names.

Whoever computes what a class's forward would must notice when it is another one: when somebody
patches the class, or puts other code into its functions, as IPython's autoreload does.
"""

from __future__ import annotations

import dis
import functools
import itertools
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

__all__ = [
    "Member",
    "Names",
    "OF_EVERY_MODULE",
    "bases_with",
    "behaviour",
    "changed",
    "code_of",
    "functions_in",
    "held",
    "helpers",
    "is_fixed",
    "is_installed",
    "is_own",
    "is_plain",
    "key_of",
    "methods_called",
    "modes_of",
    "names_in",
    "names_of",
]

#: Attributes: parameters, buffers, submodules, hooks, the mode.
OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_PLAIN = (bool, int, float, str, type(None))


class Names(NamedTuple):
    """What code names: attributes and globals, strings for getattr, and which it loads globally.

    ``stored``: which it sets, but for those of self. ``paths``: globals, and variables around it,
    with the attributes that follow. ``asked``: of which path it asks what it is or has, and how.
    """

    named: frozenset[str]
    quoted: frozenset[str]
    globals: frozenset[str]
    stored: frozenset[str]
    paths: frozenset[tuple[str, ...]]
    asked: frozenset[tuple[str, tuple[str, ...]]]
    imported: frozenset[str]
    catches: bool


class Member(NamedTuple):
    """What a forward finds in its class, or in a module: ``getattr(owner, name)``, and its code."""

    owner: Any
    name: str
    value: Any
    code: Any


def behaviour(cls: Any) -> tuple[Member, ...]:
    """The forward of ``cls`` as it is now, the methods and values of the class that it names.

    Those of its bases, too, which super() may call, but for what `is_fixed`; and `helpers`.
    """
    found = []
    named = {name for n in names_in(cls) for name in n.named | n.quoted}
    for name in ("forward", *sorted(named - {"forward"})):
        if name != "forward" and hasattr(nn.Module, name):
            continue
        bases = bases_with(cls, name)
        for owner in dict.fromkeys((cls, *bases)) if bases else ():
            value = getattr(owner, name)
            known = isinstance(value, (types.FunctionType, property)) or is_plain(value)
            if known and not is_fixed(owner):
                found.append(Member(owner, name, value, code_of(value)))
    return (*found, *helpers(cls))


def key_of(cls: Any) -> tuple[Any, ...]:
    """A key for `behaviour`, which keeps no class and no function alive.

    Raises:
        TypeError: One is made anew each time that it is asked for, as of a partialmethod.
    """
    found: list[Any] = []
    for owner, name, value, code in behaviour(cls):
        if getattr(owner, name) is not value:
            raise TypeError(f"{name} of {owner.__name__} is made anew at each call")
        value = value.fget if isinstance(value, property) else value
        kept = (value if is_plain(value) else weakref.ref(value), code and weakref.ref(code))
        found.append((weakref.ref(owner), name, *kept))
    return tuple(found)


def changed(members: Iterable[Member]) -> Iterator[Member]:
    """Those that are others now, or have other code: reloaded in place."""
    for member in members:
        owner, name, known, code = member
        if getattr(owner, name, None) is not known or code_of(known) is not code:
            yield member


def code_of(function: Any) -> Any:
    """The code of a function; None for what has none."""
    return getattr(function, "__code__", None)


def is_plain(value: Any) -> bool:
    """Whether it is a number, a string, or a tuple of such: it cannot change in place."""
    if type(value) is tuple:
        return all(type(v) in _PLAIN for v in value)
    return type(value) in _PLAIN


def is_fixed(cls: Any) -> bool:
    """Whether nobody patches it: torch's layers (docs/compatibility.md) and this package's."""
    return bool(cls.__module__.startswith(("torch.nn.", "chattn_cuda.")))


def is_own(cls: Any, name: str) -> bool:
    """Whether a method is the one in the source of the class that defines it."""
    owner = next(base for base in cls.__mro__ if name in base.__dict__)
    function, module = owner.__dict__[name], sys.modules.get(owner.__module__)
    return (
        isinstance(function, types.FunctionType)
        and function.__globals__ is getattr(module, "__dict__", None)
        and function.__qualname__ == f"{owner.__qualname__}.{name}"
        and _first_codes.setdefault(function, function.__code__) is function.__code__
    )


is_own._dynamo_marked_constant = True  # type: ignore[attr-defined]

_first_codes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""The code that functions had when they were looked at first."""


def bases_with(cls: Any, name: str) -> list[Any]:
    """``cls`` and those of its bases, up to ``nn.Module``, that define a method."""
    mro = cls.__mro__
    end = mro.index(nn.Module) if nn.Module in mro else len(mro)
    return [base for base in mro[:end] if name in base.__dict__]


def methods_called(cls: Any, name: str = "forward") -> tuple[str, ...]:
    """``name`` and the methods of ``cls`` that it calls, and they call, through super() too."""
    found = [name]
    for method in found:
        for other in {o for f in _functions(cls, method) for n in names_of(f) for o in n.named}:
            function = getattr(cls, other, None)
            own = isinstance(function, types.FunctionType) and not hasattr(nn.Module, other)
            if own and other not in found:
                found.append(other)
    return tuple(found[:1] + sorted(found[1:]))


def helpers(cls: Any) -> list[Member]:
    """The functions of its own code that the forward of ``cls`` calls, and those that they call.

    By global names, and as attributes of modules. Its own code is its package, and what is not
    installed: files that lie beside each other.
    """
    package = cls.__module__.partition(".")[0]
    found: dict[Any, Member] = {}
    todo = [f for method in methods_called(cls) for f in _functions(cls, method)]
    for function in todo:
        scope = function.__globals__
        here = sys.modules.get(scope.get("__name__", ""))
        for n in names_of(function):
            places = [(here, name) for name in n.globals if here and vars(here) is scope]
            modules = [m for m in map(scope.get, n.globals) if isinstance(m, types.ModuleType)]
            for path in n.paths:
                owner = scope.get(path[0])
                for name in path[1:-1]:
                    owner = vars(owner).get(name) if isinstance(owner, types.ModuleType) else None
                modules += [owner] * isinstance(owner, types.ModuleType)
            for owner, name in (*places, *((m, name) for m in modules for name in n.named)):
                value = vars(owner).get(name)
                if isinstance(value, types.FunctionType) and value not in found:
                    if _is_of(package, value):
                        found[value] = Member(owner, name, value, value.__code__)
                        todo += _unwrapped(value)
    return sorted(found.values(), key=lambda member: member.name)


def _is_of(package: str, function: Any) -> bool:
    home = (function.__module__ or "").partition(".")[0]
    return home == package or not (is_installed(function) or home in ("torch", "chattn_cuda"))


def is_installed(function: Any) -> bool:
    """Whether its code is of Python or of an installed package."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(_INSTALLED)


_INSTALLED = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def names_in(cls: Any) -> Iterator[Names]:
    """What the forward of ``cls``, the methods that it calls and its helpers name."""
    for function in functions_in(cls):
        yield from names_of(function)


def modes_of(module: Any) -> tuple[bool, ...]:
    """Values of ``training`` for which the forward of ``module`` may differ: one, or both."""
    inside = dict.fromkeys(map(type, module.modules()))
    asks = any("training" in n.named | n.quoted for cls in inside for n in names_in(cls))
    return (False, True) if asks else (False,)


def functions_in(cls: Any) -> Iterator[Any]:
    """All functions of the forward of ``cls``: its methods, those that they override, helpers."""
    for method in methods_called(cls):
        yield from _functions(cls, method)
    for helper in helpers(cls):
        yield from _unwrapped(helper.value)


def _functions(cls: Any, method: str) -> Iterator[Any]:
    for value in (getattr(cls, method), *(b.__dict__[method] for b in bases_with(cls, method))):
        yield from _unwrapped(getattr(value, "__func__", value))


def _unwrapped(function: Any) -> Iterator[Any]:
    """A function, and what its decorators wrap."""
    while function is not None:
        if isinstance(function, types.FunctionType):
            yield function
        function = getattr(function, "__wrapped__", None)


def names_of(function: Any) -> list[Names]:
    """What a function names, and the functions inside it."""
    found = [function.__code__]
    for code in found:
        found += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return list(map(_names, found))


@functools.lru_cache(maxsize=1024)
def _names(code: Any) -> Names:
    strings = (c for c in code.co_consts if isinstance(c, str) and c.isidentifier())
    instructions = [i for i in dis.get_instructions(code) if i.opname not in _NOTHING]
    loads = (i.argval for i in instructions if i.opname == "LOAD_GLOBAL")
    stored = {i.argval for i in instructions if i.opname == "STORE_GLOBAL"}
    paths, asked = set(), set()
    for at, (before, i) in enumerate(itertools.pairwise(instructions)):
        owner = before.argval if isinstance(before.argval, tuple) else (before.argval,)
        if i.opname == "STORE_ATTR" and owner[-1:] != ("self",):
            stored.add(i.argval)
        if before.opname in ("LOAD_GLOBAL", "LOAD_DEREF"):
            paths.add(_path(instructions, at))
            if before.argval in ("getattr", "hasattr"):
                asked.add((before.argval, _path(instructions, at + 1)))
    operations = {i.opname for i in instructions}
    pairs = {(one.opname, two.opname) for one, two in itertools.pairwise(instructions)}
    catches = bool(operations & _CATCHES) or ("PUSH_EXC_INFO", "POP_TOP") in pairs
    imported = frozenset(i.argval for i in instructions if i.opname == "IMPORT_NAME")
    return Names(
        frozenset(code.co_names), frozenset(strings), frozenset(loads), frozenset(stored),
        frozenset(paths), frozenset(asked), imported, catches,
    )  # fmt: skip


_NOTHING = frozenset("CACHE EXTENDED_ARG NOP PRECALL PUSH_NULL".split())
_CATCHES = frozenset("CHECK_EXC_MATCH JUMP_IF_NOT_EXC_MATCH SETUP_FINALLY MATCH_CLASS".split())


def _path(instructions: list[Any], at: int) -> tuple[str, ...]:
    """The variable that is loaded there, and the attributes of it; "?" for anything else."""
    first = instructions[at]
    if not first.opname.startswith(("LOAD_FAST", "LOAD_GLOBAL", "LOAD_DEREF")):
        return ("?",)
    if isinstance(first.argval, tuple):  # two variables at once
        return (first.argval[0],)
    attributes = itertools.takewhile(
        lambda i: i.opname in ("LOAD_ATTR", "LOAD_METHOD"), instructions[at + 1 :]
    )
    return first.argval, *(i.argval for i in attributes)


def held(own: dict[str, Any]) -> tuple[Any, ...]:
    """Of a module's ``__dict__``: names, classes and sizes of its parameters and buffers."""
    return tuple(
        (name, None if t is None else (type(t), t.shape))
        for kind in ("_parameters", "_buffers")
        for name, t in own.get(kind, {}).items()
    )
