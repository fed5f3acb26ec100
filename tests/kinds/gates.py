"""The gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.kinds import Base, named, taken


@taken
class Ungated(Base):
    def excite(self, s: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(s)))


@named("its forward multiplies by 2")
class Twice(Base):
    def excite(self, s: Tensor) -> Tensor:
        return 2 * super().excite(s)


@named("its forward calls softmax")
class Softmax(Base):
    def excite(self, s: Tensor) -> Tensor:
        return torch.softmax(self.fc2(F.relu(self.fc1(s))), 1)


@named("the kernels do not know gate (Softmax)")
class SoftmaxModule(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Softmax(1)

    def excite(self, s: Tensor) -> Tensor:
        return self.gate(self.fc2(F.relu(self.fc1(s))))


@named("its forward adds 3")
class HardSigmoidByHand(Base):
    def excite(self, s: Tensor) -> Tensor:
        return F.relu6(self.fc2(F.relu(self.fc1(s))) + 3) / 6


@named("its forward calls hardtanh")
class HardTanh(Base):
    def excite(self, s: Tensor) -> Tensor:
        return F.hardtanh(self.fc2(F.relu(self.fc1(s))))


@taken
class OnePlus(Base):
    """x + x * s, too."""

    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return x * (1 + s[:, :, None, None])
