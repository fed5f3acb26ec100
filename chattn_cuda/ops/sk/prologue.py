"""What the passes do to the branches of a selective kernel before they are weighed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.activations import ACTIVATIONS

__all__ = ["RELU", "Norm", "Prologue"]

RELU = ACTIVATIONS["relu"].code, 0.0

Norm = tuple[Tensor | None, Tensor | None, Tensor, Tensor, float]
"""Weight, bias, running mean, running variance and eps of a batch norm."""


@dataclass(slots=True)
class Prologue:
    """``act(scale * u + shift)`` takes the place of the branches u.

    Attributes:
        affine: Scale and shift, (2, M * C) in the accumulation type, or None.
        norms: Otherwise: a batch norm of all branches, which lie in one map, or one of each.
        act: The activation's code and parameter.
    """

    affine: Tensor | None
    norms: Sequence[Norm] = ()
    act: tuple[int, float] = RELU

    def fits(self, branches: int) -> bool:
        """Whether the kernels read so many branches through it: two, or behind a ReLU more."""
        return branches == 2 or (branches > 2 and self.act == RELU)

    def tensors(self, dtype: torch.dtype) -> tuple[list[Tensor], float]:
        """As the operator of the whole block takes them with branches of that type; and an eps."""
        if self.affine is not None:
            return [self.affine], 0.0
        tensors = []
        kind, eps = self.norms[0][2].dtype, self.norms[0][4]
        fits = kind == dtype or kind == reference.accumulation_dtype(dtype)
        for *numbers, other_eps in self.norms:
            fits = fits and other_eps == eps
            for t in numbers:
                if t is None or t.dtype != kind:
                    fits = False
                else:
                    tensors.append(t)
        return (tensors, eps) if fits else ([self.numbers(dtype)], 0.0)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """Scale and shift, (2, M * C), for branches of that type."""
        if self.affine is not None:
            return self.affine
        acc = reference.accumulation_dtype(dtype)
        rows = [torch.stack(reference.affine_of_norm(*norm, acc)) for norm in self.norms]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def arguments(self, dtype: torch.dtype) -> tuple[Tensor, int, float]:
        """As the operators of the passes take it with branches of that type."""
        return self.numbers(dtype), *self.act
