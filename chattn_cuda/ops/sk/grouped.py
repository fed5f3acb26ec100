"""1x1 convolutions of one or several groups on (N, K) numbers, with their derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["from_branches", "input_gradient", "linear", "to_branches", "weight_gradient"]


def linear(x: Tensor, w: Tensor, b: Tensor | None, groups: int = 1) -> Tensor:
    """(N, R) for x (N, K), w (R, K / groups) or (R, K / groups, 1, 1), and b (R,) or None."""
    if groups == 1:
        return F.linear(x, w.flatten(1), b)
    rows, columns = _apart(x, groups), _weights(w, groups).transpose(1, 2)
    if b is None:
        return _together(rows.bmm(columns))
    return _together(torch.baddbmm(b.view(groups, 1, -1), rows, columns))


def input_gradient(dy: Tensor, w: Tensor, groups: int = 1) -> Tensor:
    """Of x, (N, K)."""
    if groups == 1:
        return dy.mm(w.flatten(1))
    return _together(_apart(dy, groups).bmm(_weights(w, groups)))


def weight_gradient(dy: Tensor, x: Tensor, w: Tensor, groups: int = 1) -> Tensor:
    """Of w, in its shape."""
    if groups == 1:
        return dy.t().mm(x).view_as(w)
    return _apart(dy, groups).transpose(1, 2).bmm(_apart(x, groups)).view_as(w)


def to_branches(z: Tensor, branches: int, groups: int = 1) -> Tensor:
    """(N, M, C) of the rows of a selecting layer: the groups, in each the branches."""
    n, rows = z.shape
    if groups == 1:
        return z.view(n, branches, rows // branches)
    apart = z.reshape(n, groups, branches, rows // (groups * branches))
    return apart.transpose(1, 2).flatten(2)


def from_branches(z: Tensor, groups: int = 1) -> Tensor:
    """What `to_branches` was given."""
    if groups == 1:
        return z.flatten(1)
    return z.unflatten(2, (groups, -1)).transpose(1, 2).flatten(1)


def _apart(x: Tensor, groups: int) -> Tensor:
    return x.reshape(x.shape[0], groups, x.shape[1] // groups).transpose(0, 1)


def _together(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)


def _weights(w: Tensor, groups: int) -> Tensor:
    return w.reshape(groups, w.shape[0] // groups, w.shape[1])
