"""What lies inside a block that may change while its operators stand for it.

Layers of classes that are not torch's, with their settings, methods and class attributes; and
attributes of torch's layers that the block's forward reads by their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from chattn_cuda.convert.asks import sees_parameters
from chattn_cuda.convert.reads import attributes_read
from chattn_cuda.methods import (
    OF_EVERY_MODULE,
    Member,
    behaviour,
    changed,
    held,
    is_fixed,
    is_plain,
    names_in,
)

__all__ = ["NOTHING", "Inside", "are_patched", "look", "unknown_source", "why_changed"]


class _Layer(NamedTuple):
    cls: Any  # None: of torch's, which are looked at elsewhere
    settings: tuple[tuple[str, bool, Any], ...]  # name, whether it is there, value


class Inside(NamedTuple):
    """What a module was like inside."""

    within: tuple[str, ...]
    layers: dict[str, _Layer]
    members: tuple[Member, ...]
    held: tuple[Any, ...] = ()  # all parameters and layers, where the forward may see them

    @property
    def reads(self) -> tuple[str, ...]:
        """Of torch's layers, for `chattn_cuda.modules.memory`, which looks at all of the others."""
        found = tuple(
            f"{path}.{name}".lstrip(".")
            for path, layer in self.layers.items()
            for name, *_ in layer.settings
            if layer.cls is None
        )
        return (*found, "_parameters") if self.held else found


NOTHING = Inside((), {}, ())


def look(module: Any, cls: Any, within: tuple[str, ...] = ()) -> Inside:
    """What is inside ``module`` now, whose forward is that of ``cls``.

    Args:
        module: The block.
        cls: Its class.
        within: The submodules that the block consists of, where the class does more; its own
            attributes are looked at there.
    """
    layers: dict[str, _Layer] = {}
    members: dict[Member, None] = {}
    for path, m, names in _read(module, cls, within):
        own = m.__dict__
        settings = tuple((n, n in own, own.get(n)) for n in names if n not in m._buffers)
        kind = None if path == "" or is_fixed(type(m)) else type(m)
        if settings or kind is not None:
            layers[path] = _Layer(kind, settings)
        if kind is not None:
            members |= dict.fromkeys(behaviour(kind))
    own = {type(m) for m in module.modules() if not is_fixed(type(m))} - {type(module)} | {cls}
    sees = sees_parameters(module, [n for c in own for n in names_in(c)])
    return Inside(within, layers, tuple(members), _held(module) if sees else ())


def _held(module: Any) -> tuple[Any, ...]:
    """Paths, classes, parameters and buffers of all that is in it."""
    found = []
    for path, m in module.named_modules():
        kind = type(m).__dict__.get("_accelerated_from", type(m)) if path else None
        found.append((path, kind, held(m.__dict__)))
    return tuple(found)


def unknown_source(module: Any, cls: Any, within: tuple[str, ...] = ()) -> str | None:
    """What the forward reads inside that may change without a trace; None: nothing."""
    for path, m, names in _read(module, cls, within):
        for name in names:
            if path and (name in m._buffers or not is_plain(m.__dict__.get(name))):
                return f"{path}.{name}"
    return None


def _read(module: Any, cls: Any, within: tuple[str, ...]) -> Iterator[tuple[str, Any, list[str]]]:
    """Path, layer, and what is read of it by name: by the block's forward, and by its own."""
    named = {name for n in names_in(cls) for name in n.named | n.quoted}
    quoted = {name for n in names_in(cls) for name in n.quoted}
    for path, m in module.named_modules():
        own = {*m.__dict__, *m._buffers}
        absent = {name for name in quoted if not hasattr(m, name)} if path else set()
        if path == "":
            found = {n for n in named & own if within and is_plain(m.__dict__.get(n, m))}
        elif is_fixed(type(m)):
            found = named & own | absent
        elif not within or path.partition(".")[0] in within:
            plain = {name for name, value in m.__dict__.items() if is_plain(value)}
            classwide = {member.name for member in behaviour(type(m)) if is_plain(member.value)}
            found = plain | classwide | attributes_read(m, type(m)) | named & own | absent
        else:
            continue
        yield path, m, sorted(found - OF_EVERY_MODULE)


def why_changed(module: Any, known: Inside) -> str | None:
    """What is another than it was; None: nothing."""
    if known.held and _held(module) != known.held:
        return "its layers or parameters are others than when it was accelerated"
    for path, m in module.named_modules():
        layer, kind = known.layers.get(path), type(m)
        new = layer is None or layer.cls is not kind
        if path and new and not is_fixed(kind):
            if not known.within or path.partition(".")[0] in known.within:
                return f"{path} is another {kind.__name__} than when it was accelerated"
        for name, there, value in () if layer is None else layer.settings:
            now = m.__dict__.get(name)
            if (name in m.__dict__) != there or type(now) is not type(value) or now != value:
                return f"{path}.{name} was changed".lstrip(".")
    return None


def are_patched(cls: Any) -> str | None:
    """Which class inside modules of the accelerated ``cls`` is not what it was; None: none."""
    member = next(changed(cls._inside.members), None)
    return None if member is None else f"the {member.name} of {member.owner.__name__} was replaced"


are_patched._dynamo_marked_constant = True  # type: ignore[attr-defined]
