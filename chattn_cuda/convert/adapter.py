"""What `accelerate` knows of a class that it can accelerate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chattn_cuda.modules.fused import FusedForward

__all__ = ["ADAPTERS", "STRUCTURES", "Adapter", "se_obstacle"]


@dataclass(frozen=True)
class Adapter:
    """How to accelerate one class, or one kind of module.

    Attributes:
        mixin: The forward to put in front; it reads the class's own submodules. What it does not
            cover runs the class's own forward.
        obstacle: ``obstacle(module)`` returns why this instance would never take the fused path;
            what can go away by itself (hooks, batch statistics) is seen when it runs. It raises
            AttributeError where the module lacks something.
        parts: Names of other classes whose forwards the mixin stands for, where they are in use.
        fits: For modules known by structure: whether this is one.
        around: Whether the class's own forward runs around the block; it may read anything.
    """

    mixin: type[FusedForward]
    obstacle: Callable[[Any], str | None]
    parts: tuple[str, ...] = ()
    fits: Callable[[Any], bool] | None = None
    around: bool = False


ADAPTERS: dict[str, Adapter] = {}
"""By the qualified name of the class."""

STRUCTURES: dict[str, Adapter] = {}
"""By the name of the structure; each has ``fits``."""


def se_obstacle(mixin: Any) -> Callable[[Any], str | None]:
    """The ``obstacle`` of a forward of the SE family, from its layers."""
    return lambda module: mixin.fused_layers(module).why_never_fused()
