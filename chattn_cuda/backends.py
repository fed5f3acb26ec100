"""The backends, in the order in which ``backend="auto"`` takes them.

A backend is a namespace of operators with one schema per block
(``torch.ops.<namespace>.se_forward``) and one predicate that says why it cannot run, if it cannot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from chattn_cuda import _native, ops

__all__ = ["FUSED_DTYPES", "Backend", "get", "names", "register", "select", "why_not"]

FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Backend:
    """One implementation of the blocks.

    Attributes:
        name: What users pass as ``backend=``.
        namespace: The operators' namespace; None for the reference formulas.
        auto_on: The device types on which "auto" takes it; None means all.
        why_not_on: ``why_not_on(device_type)`` returns None where it can run, else the reason.
        prepare: Makes its operators known to torch; called when it is selected.
    """

    name: str
    namespace: str | None
    auto_on: tuple[str, ...] | None
    why_not_on: Callable[[str], str | None]
    prepare: Callable[[], None] = lambda: None


def _cuda(device_type: str) -> str | None:
    if device_type != "cuda":
        return f"it takes CUDA tensors, and x is on {device_type!r}"
    return _native.why_not_cuda()


def _triton(device_type: str) -> str | None:
    from chattn_cuda import triton

    return triton.why_not(device_type)


def _register_triton() -> None:
    from chattn_cuda.triton import registration  # the kernels, whose import takes a second

    registration.register()
    ops.register_rules(registration.NAMESPACE)


def _cpu(device_type: str) -> str | None:
    if device_type != "cpu":
        return f"it takes CPU tensors, and x is on {device_type!r}"
    return _native.why_not_cpu()


_BACKENDS: dict[str, Backend] = {
    b.name: b
    for b in (
        Backend("cuda", "chattn_cuda", ("cuda",), _cuda),
        Backend("triton", "chattn_cuda_triton", ("cuda",), _triton, _register_triton),
        Backend("cpu", "chattn_cuda", ("cpu",), _cpu),
        Backend("reference", None, None, lambda device_type: None),
    )
}


def register(backend: Backend) -> None:
    """Add a backend (the tests add one whose CUDA kernels run on the CPU)."""
    _BACKENDS[backend.name] = backend
    forget()


_memories: list[Callable[[], object]] = []


def when_registered(clear: Callable[[], object]) -> None:
    """Call ``clear`` whenever a backend is added: what was chosen before may not hold."""
    _memories.append(clear)


def forget() -> None:
    """Forget every choice of a backend that was made before."""
    for clear in _memories:
        clear()


def names() -> tuple[str, ...]:
    """The known backends, in the order of "auto"."""
    return tuple(_BACKENDS)


def get(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        ValueError: No such backend.
    """
    if isinstance(name, str) and name in _BACKENDS:
        return _BACKENDS[name]
    check_name(name)
    return _BACKENDS[name]


def check_name(name: object, auto: bool = False) -> None:
    """Raise unless ``name`` is a backend's name (or "auto", where ``auto``).

    Raises:
        TypeError: Not a string.
        ValueError: No such backend.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend must be a string, got {type(name).__name__}")
    if name not in _BACKENDS and not (auto and name == "auto"):
        known = ", ".join(["auto"] * auto + list(_BACKENDS))
        raise ValueError(f"backend must be one of {known}; got {name!r}")


def why_not(name: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the backend ``name`` cannot run on such tensors; None where it can.

    Raises:
        ValueError: No such backend.
    """
    backend = get(name)
    if backend.namespace is not None and dtype not in FUSED_DTYPES:
        return f"it has no kernels for {dtype}"
    return backend.why_not_on(device_type)


def select(name: str, device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """The backend to use for a tensor on ``device_type``: ``name`` itself, or what "auto" takes.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: No such backend, or it cannot run on such tensors; says why and what would.
    """
    try:
        return _select(name, device_type, dtype)
    except TypeError:  # an unhashable name
        check_name(name, auto=True)
        raise


# What torch.compiler.assume_constant_result sets, without its import of torch._dynamo, which takes
# seconds: to torch.compile a choice of backend is a constant.
select._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _select(name: str, device_type: str, dtype: torch.dtype) -> str:
    chosen = _choice(name, device_type, dtype)
    _BACKENDS[chosen].prepare()
    return chosen


def _choice(name: str, device_type: str, dtype: torch.dtype) -> str:
    check_name(name, auto=True)
    if name != "auto":
        reason = why_not(name, device_type, dtype)
        if reason is None:
            return name
        usable = [n for n in names() if why_not(n, device_type, dtype) is None]
        raise ValueError(
            f"backend {name!r} cannot run here: {reason}. For {dtype} on {device_type!r} "
            f"these can: {', '.join(usable)} (or 'auto')"
        )
    for backend in _BACKENDS.values():
        listed = backend.auto_on is None or device_type in backend.auto_on
        if listed and why_not(backend.name, device_type, dtype) is None:
            return backend.name
    raise ValueError(f"no backend can run {dtype} on {device_type!r}")


when_registered(_select.cache_clear)
