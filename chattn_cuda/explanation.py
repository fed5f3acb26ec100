"""What a call would run, and why: the answer of `chattn_cuda.explain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from chattn_cuda import backends

__all__ = ["Explanation", "explain", "explain_call", "register_explainer"]


@dataclass(frozen=True)
class Explanation:
    """How a call runs.

    Attributes:
        block: The block's name.
        backend: The backend that runs, or None where the call raises.
        path: "fused" (the kernels), "reference" (the formulas in PyTorch), "eager" (the module's
            own submodules, one after the other) or "error".
        reasons: Why this path.
        others: Why each of the other backends was not taken.
        notes: What the call does besides, such as a copy.
    """

    block: str
    backend: str | None
    path: str
    reasons: tuple[str, ...] = ()
    others: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A few lines of text."""
        lines = [f"{self.block}: {self.path}" + (f", backend {self.backend}" * bool(self.backend))]
        lines += [f"  because {reason}" for reason in self.reasons]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  not {name}: {reason}" for name, reason in self.others.items()]
        return "\n".join(lines)


_EXPLAINERS: dict[Callable[..., Any], Callable[..., Explanation]] = {}


def register_explainer(function: Callable[..., Any], explainer: Callable[..., Explanation]) -> None:
    """Let `explain` answer for ``function``; ``explainer`` takes the same arguments."""
    _EXPLAINERS[function] = explainer


def explain(target: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Say which backend and path a call would take, without running it.

    Args:
        target: A module of this package, one that `accelerate` replaced, or a function of
            `chattn_cuda.functional`.
        *args: What the call would be given.
        **kwargs: What the call would be given.

    Returns:
        A printable `Explanation`.

    Raises:
        TypeError: ``target`` is none of these.

    Example:
        >>> print(chattn_cuda.explain(SqueezeExcite(64), torch.randn(2, 64, 8, 8)))
    """
    explainer: Any = getattr(target, "explain", None) if isinstance(target, nn.Module) else None
    if explainer is None and not isinstance(target, nn.Module):
        explainer = _EXPLAINERS.get(target)
    if explainer is None:
        raise TypeError(
            "explain takes a module or function of chattn_cuda or an accelerated module, "
            f"got {getattr(target, '__name__', type(target).__name__)}"
        )
    return explainer(*args, **kwargs)


def _why_not(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    try:
        return backends.why_not(name, device_type, dtype)
    except ImportError as error:  # a native module that does not load
        return str(error)


def explain_call(
    block: str,
    requested: str,
    device_type: str,
    dtype: torch.dtype,
    uncovered: str | None,
    fallback: str,
    notes: Mapping[str, str] | None = None,
    compiled: str | None = None,
) -> Explanation:
    """The explanation of one call.

    Args:
        block: The block's name.
        requested: The ``backend=`` argument.
        device_type: Where x is.
        dtype: x's type.
        uncovered: Why the fused path does not cover this call; None where it does.
        fallback: The path of a call that is not covered: "reference" or "eager".
        notes: By backend, what it does besides on the fused path.
        compiled: What else there is to say of the fused path: how it runs under torch.compile.
    """
    reasons = []
    try:
        backend: str | None = backends.select(requested, device_type, dtype)
    except (TypeError, ValueError, ImportError) as error:
        backend, path = None, "error"
        reasons.append(str(error))
    else:
        if uncovered is not None:
            backend, path = "reference", fallback
            reasons.append(uncovered)
        elif backend == "reference":
            path = "reference"
            reasons.append(
                "backend='reference' was asked for"
                if requested == "reference"
                else "no other backend can run here"
            )
        else:
            path = "fused"
            reasons.append(
                f"it is the first of {', '.join(backends.names())} that can run here"
                if requested == "auto"
                else f"backend={requested!r} was asked for"
            )
    others = {}
    for name in backends.names():
        if name != backend:
            others[name] = _why_not(name, device_type, dtype) or (
                "it does not cover this call"
                if uncovered is not None
                else "it could run, but another was asked for"
                if requested != "auto"
                else "it could run, but is not the first choice here"
            )
    fused = backend is not None and path == "fused"
    said = [(notes or {}).get(backend or ""), compiled] if fused else []
    return Explanation(block, backend, path, tuple(reasons), others, tuple(filter(None, said)))
