"""What a call would run, and why: the answer of `chattn_cuda.explain`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from chattn_cuda import backends

__all__ = ["Explanation", "ModelExplanation", "explain", "explain_call", "register_explainer"]


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
        cls: The class of an accelerated module, before it was accelerated.
    """

    block: str
    backend: str | None
    path: str
    reasons: tuple[str, ...] = ()
    others: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cls: str = ""

    def __str__(self) -> str:
        """A few lines of text."""
        name = f"{self.block} ({self.cls})" if self.cls not in ("", self.block) else self.block
        lines = [f"{name}: {self.path}" + (f", backend {self.backend}" * bool(self.backend))]
        lines += [f"  because {reason}" for reason in self.reasons]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  not {name}: {reason}" for name, reason in self.others.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class ModelExplanation:
    """How the blocks of a model run, in the order of their calls.

    Attributes:
        calls: The name of a block in the model, and its `Explanation`.
    """

    calls: tuple[tuple[str, Explanation], ...]

    def __str__(self) -> str:
        """A few lines of text for each group of blocks that run alike."""
        groups: dict[str, list[str]] = {}
        for name, explanation in self.calls:
            groups.setdefault(str(explanation), []).append(name)
        return "\n".join(
            f"{', '.join(names)}\n  " + text.replace("\n", "\n  ") for text, names in groups.items()
        )


_EXPLAINERS: dict[Callable[..., Any], Callable[..., Explanation]] = {}


def register_explainer(function: Callable[..., Any], decide: Callable[..., Any]) -> None:
    """Let `explain` answer for ``function``.

    ``decide`` takes the same arguments, but ``return_gate``, and returns a
    `chattn_cuda.functional.Decision`.
    """
    signature = inspect.signature(function)

    def explainer(*args: Any, **kwargs: Any) -> Explanation:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        del bound.arguments["return_gate"]
        found: Explanation = decide(**bound.arguments).explain()
        return found

    _EXPLAINERS[function] = explainer


def explain(
    target: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any
) -> Explanation | ModelExplanation:
    """Say which backend and path a call would take, without running it.

    Args:
        target: A module of this package, one that `accelerate` replaced, a model that holds such
            modules, or a function of `chattn_cuda.functional`.
        *args: What the call would be given.
        **kwargs: What the call would be given.

    Returns:
        A printable `Explanation`; of a model, a `ModelExplanation` with one for every call of a
        block. The model runs on tensors without numbers for that: nothing in it changes.

    Raises:
        TypeError: ``target`` is none of these.

    Examples:
        >>> print(chattn_cuda.explain(SqueezeExcite(64), torch.randn(2, 64, 8, 8)))
    """
    if isinstance(target, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        target = target.module
    if not isinstance(target, nn.Module):
        explainer: Any = _EXPLAINERS.get(target)
    elif (explainer := getattr(target, "explain", None)) is None:
        if blocks := {m: name for name, m in target.named_modules() if _is_block(m)}:
            return _explain_model(target, blocks, args, kwargs)
    if explainer is None:
        raise TypeError(
            "explain takes a module or function of chattn_cuda, an accelerated module, or a model "
            f"that holds such modules; got {getattr(target, '__name__', type(target).__name__)}"
        )
    found: Explanation = explainer(*args, **kwargs)
    return found


def _is_block(module: nn.Module) -> bool:
    return hasattr(module, "explain") and hasattr(module, "fused_forward")


def _explain_model(
    model: nn.Module, blocks: Mapping[nn.Module, str], args: Any, kwargs: Any
) -> ModelExplanation:
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a while
    from torch.utils._pytree import tree_map_only

    calls: list[tuple[str, Explanation]] = []

    def note(module: Any, inputs: Any, named: Any, _: Any) -> None:
        if module in blocks:
            found = module.explain(*inputs, **named)
            calls.append((blocks[module] or type(module).__name__, found))

    # A hook of all modules: blocks with hooks of their own run another way.
    handle = nn.modules.module.register_module_forward_hook(note, with_kwargs=True)
    try:
        with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            own = dict(model.named_parameters()), dict(model.named_buffers())
            fakes = tree_map_only(torch.Tensor, mode.from_tensor, (args, kwargs, *own))
            torch.func.functional_call(model, (fakes[2], fakes[3]), fakes[0], fakes[1])
    finally:
        handle.remove()
        nn.modules.module._global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch leaves it
    return ModelExplanation(tuple(calls))


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
            if requested not in ("auto", "reference"):
                reasons.append(f"backend={requested!r} was asked for, and does not cover this call")
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
