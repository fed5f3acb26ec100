"""Squeeze-and-excitation computed by hand: one sample, two channels of 1 x 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chattn_cuda import reference
from tests.cases.block import ByHand


def _inputs() -> tuple[Tensor, ...]:
    # Means 2 and -1, maxima 3 and 0.
    x = torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]], dtype=torch.float64)
    w1 = torch.tensor([[1.0, 2.0], [1.0, -1.0]]).double()  # h = (2 - 2, 2 + 1) + b1
    b1 = torch.tensor([-0.5, 0.5]).double()
    w2 = torch.tensor([[1.0, 0.5], [0.0, -1.0]]).double()
    b2 = torch.tensor([0.25, 0.5]).double()
    return x, w1, b1, w2, b2


def _gradient() -> tuple[Tensor, ...]:
    # Identity gate and L = y[0, 0, 0, 0] = x00 * z0, so that every step is a product.
    inputs = [t.requires_grad_() for t in _inputs()]
    y, _ = reference.squeeze_excite(*inputs, gate=lambda z: z)
    return torch.autograd.grad(y[0, 0, 0, 0], inputs)


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


BY_HAND = (
    # h = (-0.5, 3.5); relu -> (0, 3.5); z = (1.75 + 0.25, -3.5 + 0.5) = (2, -3)
    ByHand(
        "forward",
        lambda: reference.squeeze_excite(*_inputs()),
        (
            [_sigmoid(2), 3 * _sigmoid(2), -2 * _sigmoid(-3), 0.0],
            [_sigmoid(2), _sigmoid(-3)],
        ),
        within=1e-15,
    ),
    # p = (2 + 3, -1 + 0) / 2 = (2.5, -0.5); h = (1.5 - 0.5, 3 + 0.5) = (1, 3.5)
    # z = (1 + 1.75 + 0.25, -3.5 + 0.5) = (3, -3)
    ByHand(
        "maxpool",
        lambda: reference.squeeze_excite(*_inputs(), add_maxpool=True)[1:],
        ([_sigmoid(3), _sigmoid(-3)],),
        within=1e-15,
    ),
    ByHand(
        "gradient",
        _gradient,
        (
            # dp = w1^T dh = (0.5, -0.5), spread over two pixels; and the gate z0 = 2 at x00
            [2.25, 0.25, -0.25, -0.25],
            # dz = (x00, 0) = (1, 0); da = (1, 0.5); dh = (0, 0.5) as h0 < 0; p = (2, -1)
            [0.0, 0.0, 1.0, -0.5],
            [0.0, 0.5],
            [0.0, 3.5, 0.0, 0.0],
            [1.0, 0.0],
        ),
    ),
)
