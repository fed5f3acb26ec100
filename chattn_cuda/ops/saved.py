"""What a node of the graph keeps for its backward.

No None, which tools that walk a graph do not expect among saved tensors. And no bias: first
derivatives do not read it, so it may change before the backward, as in eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["save", "saved", "unchanged_biases"]


def save(ctx: Any, tensors: Sequence[Tensor | None], biases: Sequence[Tensor | None] = ()) -> None:
    """Keep ``tensors`` for `saved`, and ``biases`` for `unchanged_biases`."""
    kept, places = [], []
    for i, t in enumerate(tensors):
        if t is not None:
            kept.append(t)
            places.append(i)
    ctx.save_for_backward(*kept)
    ctx.places = None if len(kept) == len(tensors) else (places, len(tensors))
    ctx.biases = biases
    versions = []
    for t in biases:
        versions.append(-1 if t is None or t.is_inference() else t._version)
    ctx.versions = versions


def saved(ctx: Any) -> Sequence[Any]:
    """The tensors of `save`, with None where there were none."""
    if ctx.places is None:
        return ctx.saved_tensors
    places, count = ctx.places
    found: list[Any] = [None] * count
    for i, t in zip(places, ctx.saved_tensors, strict=True):
        found[i] = t
    return found


def unchanged_biases(ctx: Any) -> Sequence[Any]:
    """The biases of `save`.

    Raises:
        RuntimeError: One of them was changed in place.
    """
    for t, version in zip(ctx.biases, ctx.versions, strict=True):
        if t is not None and not t.is_inference() and t._version != version:
            raise RuntimeError("a bias was changed in place, and this backward needs its value")
    return ctx.biases
