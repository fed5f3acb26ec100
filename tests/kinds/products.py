"""The product, and what is returned."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.kinds import NAMED, RD, TAKEN, Base, C, Convolutions, named, taken


@taken
class Multiply(Convolutions):
    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return torch.multiply(x, s)


@taken
class MultiplyMethod(Convolutions):
    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return x.multiply(s.expand_as(x))


@taken
class EinsumProduct(Base):
    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return torch.einsum("nchw,nc->nchw", x, s)


class Product(nn.Module):
    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return x * s


@taken
class ProductModule(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.product = Product()

    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return self.product(x, s)


class InItsBlock(nn.Module):
    """As in kuangliu/pytorch-cifar."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.fc1, self.fc2 = nn.Conv2d(C, RD, 1), nn.Conv2d(RD, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        w = F.relu(self.fc1(F.avg_pool2d(out, (out.size(2), out.size(3)))))
        out = out * torch.sigmoid(self.fc2(w))
        out += x
        return F.relu(out)


NAMED.append((InItsBlock, "is part of a larger forward: give it a submodule of its own"))


@named("is part of a larger forward")
class InItsSmallerBlock(InItsBlock):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, 2 * C, 3, padding=1, stride=2)
        self.bn1, self.bn2 = nn.BatchNorm2d(2 * C), nn.BatchNorm2d(2 * C)
        self.conv2 = nn.Conv2d(2 * C, 2 * C, 3, padding=1)
        self.fc1, self.fc2 = nn.Conv2d(2 * C, RD, 1), nn.Conv2d(RD, 2 * C, 1)
        self.shortcut = nn.Conv2d(C, 2 * C, 1, stride=2)
        self.mix = nn.Conv2d(2 * C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out = out * torch.sigmoid(self.fc2(F.relu(self.fc1(out.mean((2, 3), keepdim=True)))))
        return self.mix(F.relu(out + self.shortcut(x)))


@named("is not for maps (N, C, H, W)")
class OfSequences(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean(2)

    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return x * s.unsqueeze(2)


@named("is not for maps (N, C, H, W)")
class ChannelsLast(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean((1, 2))

    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return x * s[:, None, None]


@named("returns more than the map: let it return x * gate alone")
class Both(Convolutions):
    def scale(self, x: Tensor, s: Tensor) -> Any:
        return x * s, s


@named("returns the gate: let it return x * gate")
class GateAlone(Convolutions):
    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return s


@named("returns the gate: let it return x * gate")
class GateAsMap(Base):
    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return s[:, :, None, None].expand_as(x)


@named("its forward calls chunk")
class ScaleAndBias(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Linear(RD, 2 * C)

    def excite(self, s: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(s)))

    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        gate, bias = s[:, :, None, None].chunk(2, 1)
        return x * torch.sigmoid(gate) + bias


@taken
class TimesItsGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = GateAlone()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class SCSEModule(nn.Module):
    """As in segmentation_models_pytorch."""

    def __init__(self) -> None:
        super().__init__()
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, RD, 1), nn.ReLU(inplace=True),
            nn.Conv2d(RD, C, 1), nn.Sigmoid(),
        )  # fmt: skip
        self.sSE = nn.Sequential(nn.Conv2d(C, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cSE(x) + x * self.sSE(x)


TAKEN.append(SCSEModule)


@named("computes something else")
class MaximumOfBoth(SCSEModule):
    def forward(self, x: Tensor) -> Tensor:
        return torch.max(x * self.cSE(x), x * self.sSE(x))


@named("calls spatial on the map itself")
class OwnScse(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x * torch.sigmoid(self.spatial(x))
