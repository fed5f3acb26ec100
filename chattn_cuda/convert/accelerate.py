"""`accelerate` and `restore`: which modules get which class."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import nn

from chattn_cuda import backends
from chattn_cuda.convert import classes, dataflow, surroundings
from chattn_cuda.convert.adapter import STRUCTURES
from chattn_cuda.convert.report import Entry, Report
from chattn_cuda.hooks import qualified_name
from chattn_cuda.modules.fused import FusedForward

__all__ = ["accelerate", "restore"]


def accelerate(model: nn.Module, backend: str = "auto", fuse: str = "tail") -> Report:
    """Let the channel-attention blocks inside ``model``, and what is around them, run fused.

    Known are the blocks of timm and torchvision (`chattn_cuda.peers.PEERS` lists the classes), and
    modules that are built like other libraries' (``SELayer``, ``ChannelSELayer``, ``SE``,
    ``eca_layer``, ``MBConvBlock``, ...), whatever their names: those are accepted when the forward
    does what the block does on a small map, and nothing else, and a copy with random weights gives,
    in float64, what the block's formula gives. Results, state_dict keys, parameters, hooks,
    ``isinstance``, signatures, deepcopy and pickle stay as they were, and a class that is patched
    runs as it is patched. Modules that are already accelerated get the new ``backend``. Where this
    raises, the model is unchanged. Afterwards, a named backend that cannot run where a map is
    raises ValueError when it is called; calls that its kernels do not cover run as plain PyTorch,
    and `chattn_cuda.explain` says why.

    Args:
        model: Any module, also one of these blocks itself.
        backend: "auto" or one of `chattn_cuda.backends.names()`. A program of `torch.export` gets
            plain operations with "auto", and keeps the operators of a backend that is named.
        fuse: "tail": also batch norms with what follows them (attention, stochastic depth, an
            addition, an activation), in the blocks of timm and torchvision that
            `chattn_cuda.convert.surroundings` lists; with and without attention. "block": the
            attention blocks alone.

    Returns:
        A printable `Report` of what was changed, what was not and why; the model is
        ``report.model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: Unknown backend or ``fuse``.

    Examples:
        >>> model = timm.create_model("seresnet50")
        >>> print(chattn_cuda.accelerate(model))
    """
    _check(model)
    backends.check_name(backend, auto=True)
    if fuse not in ("block", "tail"):
        raise ValueError(f"fuse must be 'block' or 'tail', got {fuse!r}")
    plan = _Plan(backend, fuse)
    for name, module in model.named_modules():
        plan.look(name, module)
    _change(plan.to_do, backend)
    notes = _notes(backend, [m for m, c in plan.to_do if classes.base_of(c) is not c])
    changed, left, again = tuple(plan.changed), tuple(plan.left), tuple(plan.again)
    return Report(model, "accelerated", changed, left, again, notes)


class _Plan:
    """What becomes of a model's modules, looked at one after the other; nothing is changed yet."""

    def __init__(self, backend: str, fuse: str) -> None:
        self.backend, self.fuse = backend, fuse
        self.changed: list[Entry] = []
        self.left: list[Entry] = []
        self.again: list[Entry] = []
        self.to_do: list[tuple[Any, Any]] = []  # modules and their new classes
        self.tried: list[Any] = []  # classes, which keep what was found out about them
        self.inside: set[int] = set()  # modules in what was found by its dataflow
        self.covered: set[int] = set()  # modules in tails, which look after them

    def look(self, name: str, module: Any) -> None:
        """At the next module, behind those that it is in."""
        cls: Any = type(module)
        base = classes.base_of(cls)
        entry = functools.partial(Entry, name, base.__name__)
        is_tail = surroundings.is_tail(classes.origin_of(base))
        if is_tail and (self.fuse == "block" or id(module) in self.covered):
            if base is not cls and self.fuse == "block":
                self.again.append(entry("its batch norms run by its layers again"))
            self._own_class(module, base)
        elif base is not cls and not classes.is_stale(cls):
            self._accelerate(module, cls, is_tail)
            self.again.append(entry(f"backend is now {self.backend!r}"))
            if cls._accelerated_as.startswith(dataflow.PREFIX):
                self.inside.update(map(id, module.modules()))
        elif base is cls and isinstance(module, (FusedForward, torch.jit.ScriptModule)):
            if (reason := classes.why_not_undone(cls)) is not None:  # fused, or compiled
                self.left.append(entry(f"{reason}: its backend stays"))
        else:
            self._look_at_new(module, base, is_tail, entry)

    def _look_at_new(self, module: Any, base: Any, is_tail: bool, entry: Any) -> None:
        key = None if id(module) in self.inside else _key_of(module, base)
        if key is None:
            self._own_class(module, base)
            return
        if isinstance(key, dataflow.NotTaken) or key.startswith(dataflow.PREFIX):
            if _holds_a_block(module):
                return
            self.inside.update(map(id, module.modules()))
        new, reason = self._new_class(module, base, key)
        if reason is None:
            self._accelerate(module, new, is_tail)
            what = "its batch norms with what follows them, " * is_tail
            self.changed.append(entry(f"{what}backend {self.backend!r}"))
        else:
            self._own_class(module, base)
            self.left.append(entry(reason))

    def _new_class(self, module: Any, base: Any, key: Any) -> tuple[Any, str | None]:
        """The accelerated class, or why there is none."""
        if isinstance(key, dataflow.NotTaken):
            return base, key.reason
        if (reason := _obstacle(module, base, key)) is not None:
            return base, reason
        try:
            new = classes.accelerated(base, key, module)
            self.tried.append(new)
            _try_on(module, new, self.backend)
        except Exception as error:  # a metaclass, __init_subclass__, __setattr__, __slots__
            return base, f"its class cannot be extended: {error}"
        return new, classes.why_not_as(module, new)

    def _accelerate(self, module: Any, cls: Any, is_tail: bool) -> None:
        self.to_do.append((module, cls))
        self.covered.update(map(id, surroundings.covered(module) if is_tail else ()))

    def _own_class(self, module: Any, base: Any) -> None:
        if type(module) is not base:
            self.to_do.append((module, base))


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
    changed, left = [], []
    for name, module in model.named_modules():
        base = classes.base_of(type(module))
        if base is not type(module):
            _set(module, base, None)
            changed.append(Entry(name, base.__name__, "its own forward"))
        elif (reason := classes.why_not_undone(base)) is not None:
            left.append(Entry(name, base.__name__, f"{reason}: undo that first"))
    return Report(model, "restored", tuple(changed), tuple(left))


def _change(to_do: list[tuple[Any, Any]], backend: str) -> None:
    """Give modules their new classes: all of them, or none."""
    before = [(module, type(module), module.__dict__.get("_backend")) for module, _ in to_do]
    try:
        for module, cls in to_do:
            _set(module, cls, None if classes.base_of(cls) is cls else backend)
    except BaseException:
        for module, cls, name in before:
            _set(module, cls, name)
        raise


def _try_on(module: Any, cls: Any, backend: str) -> None:
    """Raise unless ``module`` takes a class and a backend; it keeps its own."""
    before = type(module), module.__dict__.get("_backend")
    try:
        module.__class__ = cls
        if type(module) is not cls:
            raise TypeError("it ignores what is set")
        module.backend = backend
        if module.__dict__.get("_backend") != backend:
            raise TypeError("it ignores what is set")
    finally:
        _set(module, *before)


def _set(module: Any, cls: Any, backend: str | None) -> None:
    """Past a __setattr__ of its class, which may have become stricter since."""
    object.__setattr__(module, "__class__", cls)
    if backend is None:
        module.__dict__.pop("_backend", None)
    else:
        module.__dict__["_backend"] = backend


def _notes(backend: str, modules: list[Any]) -> tuple[str, ...]:
    """What to know before the first call."""
    if backend == "auto" or not modules:
        return ()
    device = next((p.device.type for m in modules for p in m.parameters()), "cpu")
    try:
        reason = backends.why_not(backend, device)
    except ImportError as error:  # a native module that does not load
        reason = str(error)
    if reason is None or device == "meta":
        return ()
    return (f"backend {backend!r} cannot run where the model is now: {reason}",)


def _check(model: object) -> None:
    exported = sys.modules.get("torch.export.exported_program")  # its import takes long
    if exported is not None and isinstance(model, exported.ExportedProgram):
        raise TypeError(
            "model must be a torch.nn.Module, got an ExportedProgram: accelerate the model before "
            "torch.export"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _key_of(module: Any, base: Any) -> str | dataflow.NotTaken | None:
    """The adapter for ``module``: a class's (or its nearest base's) name, or a structure's.

    Or why there is none, for what looks like a block.
    """
    origin = classes.origin_of(base)
    if origin is not None:
        return qualified_name(origin)
    for name, adapter in STRUCTURES.items():
        try:
            if adapter.fits and adapter.fits(module):
                if adapter.within or dataflow.reads_nothing(module, base):
                    return name
        except AttributeError:  # it lacks something
            continue
    own = type(module)
    if own is base:
        return dataflow.key_of(module)
    module.__class__ = base  # whose forward was patched since
    try:
        return dataflow.key_of(module)
    finally:
        module.__class__ = own


def _holds_a_block(module: Any) -> bool:
    """Whether it looks like a block for what is in it."""
    for inner in module.modules():
        if inner is not module:
            if isinstance(inner, FusedForward):
                return True
            base = classes.base_of(type(inner))
            key = None if type(inner).__module__.startswith("torch.") else _key_of(inner, base)
            if key is not None and not (isinstance(key, dataflow.NotTaken) and key.is_gate):
                return True
    return False


def _obstacle(module: Any, base: Any, key: str) -> str | None:
    """Why ``module``, of the class ``base``, must keep its own forward."""
    adapter = classes.adapter_for(key)
    if "forward" in module.__dict__:
        return "it has a forward of its own"
    reason = classes.replaced(key, base)
    if reason is not None:
        return reason
    more = classes.calls_more_than(base, adapter.mixin)
    if more is not None:
        return f"its forward takes ({more})"
    own = {*module.__dict__, *module._parameters, *module._buffers, *module._modules}
    own -= {"_backend"} if type(module) is not base else set()
    for name in dir(adapter.mixin):
        if name.startswith("__") or name == "forward":
            continue
        if name in own or hasattr(base, name):
            return f"it has an attribute {name!r} of its own"
    try:
        return adapter.obstacle(module)
    except AttributeError as error:
        return f"it has no {error.name}" if error.name else str(error)
