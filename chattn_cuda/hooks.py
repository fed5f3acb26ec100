"""Whether calling a submodule does more than its class says."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = [
    "are_as_their_classes", "class_of", "has_hooks", "has_own_forward", "own_behaviour",
    "qualified_name",
]  # fmt: skip


def qualified_name(cls: type) -> str:
    """With its module: by which classes of other libraries are known without importing them."""
    return f"{cls.__module__}.{cls.__qualname__}"


def class_of(module: Any) -> Any:
    """The class of ``module``, before `chattn_cuda.accelerate`."""
    cls = type(module)
    return cls.__dict__.get("_accelerated_from", cls)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` runs hooks of its own.

    Hooks of all modules do not count: counters and profilers have those, and shall see what runs.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def has_own_forward(attributes: dict[str, Any]) -> bool:
    """Whether a module with these attributes has another forward than its class."""
    return "forward" in attributes or "_conv_forward" in attributes  # the second: of a convolution


def own_behaviour(module: nn.Module) -> str | None:
    """What a call of ``module`` does beside its class's forward, as a predicate; None: nothing."""
    if has_hooks(module):
        return "has hooks"
    return "has a forward of its own" if has_own_forward(module.__dict__) else None


def are_as_their_classes(*modules: nn.Module) -> bool:
    """Whether `own_behaviour` has nothing to say of any, in one call."""
    for m in modules:
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return False
        own = m.__dict__
        if "forward" in own or "_conv_forward" in own:
            return False
    return True
