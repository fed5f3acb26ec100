"""What is no block, though it has parts of one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.kinds import RD, C


class MlpHead(nn.Module):
    def __init__(self, classes: int = C) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, RD), nn.Linear(RD, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


class MultiLabelHead(MlpHead):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class AsppPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.relu(self.conv(F.adaptive_avg_pool2d(x, 1))), x.shape[-2:])


class StyleModulation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.style = nn.Linear(C, C)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return x * torch.sigmoid(self.style(w))[:, :, None, None]


class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * torch.sigmoid(self.b(x))


class SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(2, 1, 7, padding=3), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.mix(x * torch.sigmoid(self.conv(s)))


class InstanceNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
        return self.mix((x - mean) * (var + 1e-5).rsqrt())


class GlobalContext(nn.Module):
    """Adds what it made of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))
