"""The selective kernel computed by hand: two branches of two channels of 1 x 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.functional import selective_kernel
from tests.cases.block import ByHand

# means 2, -1 and 1, 3
_MAPS = [[[[1.0, 3.0]], [[-2.0, 0.0]]], [[[2.0, 0.0]], [[4.0, 2.0]]]]


def _branches(channels: int) -> list[Tensor]:
    return [torch.tensor([u[:channels]], dtype=torch.float64) for u in _MAPS]


def _forward() -> Sequence[Tensor]:
    # p = (2 + 1, -1 + 3) = (3, 2); h = relu(3 - 2, -3 + 2 + 0.5) = (1, 0)
    # z = (2, 0) + b for the first branch, (1, 0) + b for the second: differences 1 and -1.5
    w_reduce = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()
    b_reduce = torch.tensor([0.0, 0.5]).double()
    w_select = torch.tensor([[2.0, 5.0], [0.0, 5.0], [1.0, -5.0], [0.0, -5.0]]).double()
    b_select = torch.tensor([0.0, 0.0, 0.0, 1.5]).double()
    weights = (w_reduce, b_reduce, w_select, b_select)
    return selective_kernel(_branches(2), *weights, return_gate=True, backend="reference")


def _gradient() -> Sequence[Tensor]:
    # Channel 0 only: p = 2 + 1, logits z = (1 p + 6, 3 p) = (9, 9), so both gates are 1 / 2.
    # L = y[0] at the first pixel = g0 * 1 + g1 * 2, so dg = (1, 2) and
    # dz = g (dg - sum(g dg)) = 1/2 * ((1, 2) - 3/2) = (-1/4, 1/4)
    branches = [u.requires_grad_() for u in _branches(1)]
    w = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[[6.0], [0.0]]], dtype=torch.float64)
    logits = w * reference.squeeze_branches(branches)[:, None] + b
    y, gate = reference.select_branches(branches, logits)
    return gate, *torch.autograd.grad(y[0, 0, 0, 0], [*branches, w])


# softmax of two numbers: the sigmoid of their difference
_A, _B = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1.5))
BY_HAND = (
    ByHand("mean", lambda: [reference.squeeze_branches(_branches(2))], ([3.0, 2.0],)),
    ByHand(
        "forward",
        _forward,
        (
            [_A + 2 * (1 - _A), 3 * _A, -2 * _B + 4 * (1 - _B), 2 * (1 - _B)],
            [_A, _B, 1 - _A, 1 - _B],
        ),
        within=1e-15,
    ),
    # dw = dz p; dp = dz w = -1/4 + 3/4 = 1/2, over two pixels: 1/4; and the gates at the first
    ByHand("gradient", _gradient, ([0.5, 0.5], [0.75, 0.25], [0.75, 0.25], [-0.75, 0.75])),
)
