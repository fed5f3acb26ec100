"""What `accelerate` knows of what it can accelerate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chattn_cuda.modules.fused import FusedForward
from chattn_cuda.peers import PEERS

__all__ = ["ADAPTERS", "STRUCTURES", "Adapter"]


@dataclass(frozen=True)
class Adapter:
    """How to accelerate one class, or one kind of module.

    Attributes:
        mixin: As of a `chattn_cuda.peers.Peer`.
        obstacle: As there.
        parts: As there.
        fits: For modules known by structure: whether this is one.
        within: Where the class's own forward runs around the block, and may read anything: the
            submodules that the block consists of.
        recorded: For structures: the kinds of events of the forward (`recording`), a pattern.
    """

    mixin: type[FusedForward]
    obstacle: Callable[[Any], str | None]
    parts: tuple[str, ...] = ()
    fits: Callable[[Any], bool] | None = None
    within: tuple[str, ...] = ()
    recorded: str = ""


ADAPTERS = {peer.path: Adapter(peer.mixin, peer.obstacle, peer.parts) for peer in PEERS}
"""By the qualified name of the class."""

STRUCTURES: dict[str, Adapter] = {}
"""By the name of the structure; each has ``fits``."""
