"""Ways to write channel attention: classes, with what `accelerate` is to make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C, RD = 16, 4

TAKEN: list[Callable[[], nn.Module]] = []
NAMED: list[tuple[Callable[[], nn.Module], str]] = []


def taken(cls: Any) -> Any:
    """The class is to be accelerated."""
    TAKEN.append(cls)
    return cls


def named(reason: str) -> Callable[[Any], Any]:
    """The class is to be left, with this reason."""

    def register(cls: Any) -> Any:
        NAMED.append((cls, reason))
        return cls

    return register


class Base(nn.Module):
    """Two linear layers, a squeeze, an excitation and a product, each to be written otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1: Any = nn.Linear(C, RD)
        self.fc2: Any = nn.Linear(RD, C)

    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def excite(self, s: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.fc1(s))))

    def scale(self, x: Tensor, s: Tensor) -> Any:
        return x * s[:, :, None, None]

    def forward(self, x: Tensor) -> Any:
        return self.scale(x, self.excite(self.squeeze(x)))


class Convolutions(Base):
    """The same with 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(C, RD, 1), nn.Conv2d(RD, C, 1)

    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)

    def scale(self, x: Tensor, s: Tensor) -> Any:
        return x * s
