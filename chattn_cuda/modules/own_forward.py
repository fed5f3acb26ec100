"""Accelerated classes whose own forward may take more than the operators do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chattn_cuda import backends
from chattn_cuda.functional import Decision

__all__ = ["OwnForward"]


class OwnForward:
    """Mixin in front of a block's forward: what the operators refuse goes to the class's own.

    That raises, or knows what to do: with maps of other ranks, with channels that a layer
    broadcasts, with weights of another type.
    """

    if TYPE_CHECKING:
        backend: str
        eager_forward: Any

    _block = ""
    #: Whether the type of its own result depends on the weights' too, where the map has another.
    _mixes_types = False

    @torch.jit.unused
    def _why_own(self, x: Tensor) -> str | None:
        """Why the class's own forward takes the map ``x``."""
        if x.dim() != self._axes():
            return f"x has {x.dim()} axes, not {self._axes()}"
        if self._mixes_types:
            for p in self.parameters():  # type: ignore[attr-defined]
                if p.dtype != x.dtype:
                    return f"with {p.dtype} weights its own result is not {x.dtype}"
        return None

    @torch.jit.unused
    def _axes(self) -> int:
        """Of the maps for which the forward is known."""
        return 4

    @torch.jit.unused
    def _fused_or_eager(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and self._why_own(x) is None:
            return super()._fused_or_eager(x)  # type: ignore[misc, no-any-return]
        return self.eager_forward(x)  # type: ignore[no-any-return]

    @torch.jit.unused
    def _fuse(self, x: Tensor) -> Tensor | None:
        backends.select(self.backend, x.device.type)  # who names one is told that it cannot run
        try:
            return super()._fuse(x)  # type: ignore[misc, no-any-return]
        except (TypeError, ValueError):
            return None

    @torch.jit.unused
    def decide(self, x: Tensor) -> Decision:
        """What ``forward(x)`` comes to."""
        found = self._why_own(x)
        if found is None:
            try:
                return super().decide(x)  # type: ignore[misc, no-any-return]
            except (TypeError, ValueError) as error:
                found = str(error)
        name = self._block or type(self).__name__
        return Decision(name, self.backend, x, found, fallback="eager")
