"""The operators of the selective kernel with flat lists of tensors, and their formulas."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import memory_format_of
from chattn_cuda.ops.calls import call
from chattn_cuda.ops.derivable import Derivable

__all__ = [
    "Form",
    "derived",
    "dot_flat",
    "dot_formula",
    "gradient_flat",
    "gradient_formula",
    "gradient_of_branches",
    "gradient_of_logits",
    "select_flat",
    "select_formula",
    "split",
    "squeeze_flat",
    "squeeze_formula",
]


def split(maps: Sequence[Tensor], slices: int) -> list[Tensor]:
    """The branches, of maps or of one map's slices."""
    return list(maps[0].chunk(slices, 1)) if slices > 1 else list(maps)


def squeeze_flat(namespace: str, *branches: Tensor) -> tuple[Tensor]:
    """The mean of the branches' sum."""
    return (call(namespace, "sk_squeeze", list(branches)),)


def squeeze_formula(*branches: Tensor) -> tuple[Tensor]:
    """The same in plain PyTorch."""
    return (reference.squeeze_branches(branches),)


def select_flat(namespace: str, logits: Tensor, *branches: Tensor) -> tuple[Tensor]:
    """Y, of the logits and the branches."""
    return (call(namespace, "sk_select", list(branches), logits),)


def select_formula(logits: Tensor, *branches: Tensor) -> tuple[Tensor]:
    """The same in plain PyTorch."""
    return (reference.select_branches(branches, logits)[0],)


def dot_flat(
    namespace: str, slices: int, dy: Tensor, logits: Tensor, *maps: Tensor
) -> tuple[Tensor]:
    """The gradient of the logits."""
    return (call(namespace, "sk_dot", dy, logits, split(maps, slices)),)


def dot_formula(slices: int, dy: Tensor, logits: Tensor, *maps: Tensor) -> tuple[Tensor]:
    """The same in plain PyTorch."""
    gate, g = torch.softmax(logits, 1), dy.to(logits.dtype)
    ds = torch.stack([(g * u.to(g.dtype)).sum((2, 3)) for u in split(maps, slices)], 1)
    return (gate * (ds - (gate * ds).sum(1, keepdim=True)),)


@dataclass(frozen=True)
class Form:
    """What the gradients of the branches look like.

    Attributes:
        count: M.
        size: Shape (N, C, H, W) of a branch.
        dtype: Of the maps.
        channels_last: Their memory format.
        stacked: Whether they are one map (N, M * C, H, W).
    """

    count: int
    size: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    stacked: bool

    @staticmethod
    def of(maps: Sequence[Tensor], slices: int) -> Form:
        n, c, h, w = maps[0].shape
        channels_last = memory_format_of(maps[0]) == torch.channels_last
        count = slices if slices > 1 else len(maps)
        return Form(count, (n, c // slices, h, w), maps[0].dtype, channels_last, slices > 1)

    @property
    def aligned(self) -> bool:
        """Whether slices of one map start on 16-byte boundaries, so that kernels can write them."""
        _, c, h, w = self.size
        return (c if self.channels_last else c * h * w) * self.dtype.itemsize % 16 == 0


def gradient_flat(
    namespace: str, form: Form, dpooled: Any, dy: Any, logits: Any
) -> tuple[Tensor, ...]:
    """The gradients of the branches; without dy (only the logits were used) only the mean's."""
    if dy is None:
        return gradient_formula(form, dpooled, dy, logits)
    stacked = form.stacked and form.aligned
    found = call(namespace, "sk_gradient", dy, logits, dpooled, form.channels_last, stacked)
    return (torch.cat(found, 1),) if form.stacked and not stacked else tuple(found)


def gradient_formula(form: Form, dpooled: Any, dy: Any, logits: Any) -> tuple[Tensor, ...]:
    """The same in plain PyTorch."""
    gate = None if dy is None else torch.softmax(logits, 1)
    mean = None
    if dpooled is not None:
        mean = (dpooled / (form.size[2] * form.size[3]))[:, :, None, None].expand(form.size)
    parts = []
    for m in range(form.count):
        v = mean
        if gate is not None:
            v = dy.to(gate.dtype) * gate[:, m, :, None, None]
            v = v if mean is None else v + mean
        assert v is not None
        parts.append(v.to(form.dtype))
    return (torch.cat(parts, 1),) if form.stacked else tuple(parts)


def derived(
    operator: Any, formula: Any, *args: Any, variables: int | None = None
) -> tuple[Tensor, ...]:
    """The operator; where it may be differentiated again, with the derivatives of its formula.

    The gradients that come in are among the first two arguments.
    """
    if torch.compiler.is_compiling():
        return operator(*args)
    return Derivable(operator, formula, len(args) if variables is None else variables)(*args)


def gradient_of_logits(
    namespace: str, slices: int, dy: Tensor, logits: Tensor, maps: Sequence[Tensor]
) -> Tensor:
    """`dot_flat`, which may be differentiated again."""
    operator = functools.partial(dot_flat, namespace, slices)
    formula = functools.partial(dot_formula, slices)
    return derived(operator, formula, dy, logits, *maps)[0]


def gradient_of_branches(
    namespace: str, form: Form, dpooled: Tensor | None, dy: Tensor | None, logits: Tensor | None
) -> tuple[Tensor, ...]:
    """`gradient_flat`, which may be differentiated again."""
    operator = functools.partial(gradient_flat, namespace, form)
    formula = functools.partial(gradient_formula, form)
    return derived(operator, formula, dpooled, dy, logits)
