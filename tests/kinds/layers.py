"""Which layers make the gate."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from tests.kinds import NAMED, RD, Base, C, Convolutions, named, taken


@taken
class LinearByHand(Base):
    def excite(self, s: Tensor) -> Tensor:
        s = F.relu(F.linear(s, self.fc1.weight, self.fc1.bias))
        return torch.sigmoid(s @ self.fc2.weight.t() + self.fc2.bias)


@taken
class Addmm(Base):
    def excite(self, s: Tensor) -> Tensor:
        s = F.relu(torch.addmm(self.fc1.bias, s, self.fc1.weight.T))
        return torch.sigmoid(torch.matmul(s, self.fc2.weight.T) + self.fc2.bias)


@taken
class EinsumLayers(Base):
    def excite(self, s: Tensor) -> Tensor:
        s = F.relu(torch.einsum("nc,dc->nd", s, self.fc1.weight) + self.fc1.bias)
        return torch.sigmoid(torch.einsum("nd,cd->nc", s, self.fc2.weight).add(self.fc2.bias))


@named("its output does not depend on fc1.bias")
class ForgottenBias(Base):
    def excite(self, s: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(F.linear(s, self.fc1.weight))))


class Parameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(RD, C)), nn.Parameter(torch.randn(RD))
        self.w2 = nn.Parameter(torch.randn(C, RD))

    def forward(self, x: Tensor) -> Tensor:
        s = F.relu(F.linear(x.mean((2, 3)), self.w1, self.b1))
        return x * torch.sigmoid(F.linear(s, self.w2))[:, :, None, None]


NAMED.append((Parameters, "w1 and w2 are parameters of its own: make nn.Linear layers of them"))


@named("w1 and w2 are parameters of its own")
class Transposed(Parameters):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(C, RD)), nn.Parameter(torch.randn(RD, C))

    def forward(self, x: Tensor) -> Tensor:
        s = F.relu(x.mean((2, 3)) @ self.w1 + self.b1)
        return x * torch.sigmoid(s @ self.w2)[:, :, None, None]


@named("fc1 is a Conv1d, not an nn.Linear")
class PointwiseConv1d(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv1d(C, RD, 1), nn.Conv1d(RD, C, 1)

    def squeeze(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1, keepdim=True)

    def scale(self, x: Tensor, s: Tensor) -> Tensor:
        return x * s[..., None]


@named("fc1 is a convolution in 2 groups")
class Grouped(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(C, RD, 1, groups=2), nn.Conv2d(RD, C, 1, groups=2)


@named("but has 3 layers")
class ThreeLayers(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc3 = nn.Linear(C, C)

    def excite(self, s: Tensor) -> Tensor:
        return torch.sigmoid(self.fc3(F.relu(self.fc2(F.relu(self.fc1(s))))))


class LoraWrapper(nn.Module):
    """As peft's: the layer beside two of low rank."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


@named("fc1 is a LoraWrapper of 3 layers: merge them into one")
class WithLora(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = LoraWrapper(self.fc1)


@named("fc1 is a LoraWrapper of 3 layers")
class WithTwoLoras(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = LoraWrapper(self.fc1), LoraWrapper(self.fc2)


class LoraLinear(nn.Linear):
    """As loralib's."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__(given, made)
        self.a, self.b = nn.Parameter(torch.randn(2, given)), nn.Parameter(torch.randn(made, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a.T @ self.b.T


@named("fc1 is a LoraLinear")
class WithLoraLinear(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = LoraLinear(C, RD)


class OwnLinear(nn.Module):
    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(made, given))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@named("fc1 is a OwnLinear, not an nn.Linear")
class WithOwnLinear(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = OwnLinear(C, RD), OwnLinear(RD, C)


COMPUTED = "the weight of fc1 is computed at every call: make it a parameter"


@named(COMPUTED)
class WeightNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = parametrizations.weight_norm(self.fc1)


@named(COMPUTED)
class OldWeightNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = weight_norm(self.fc1)


@named(COMPUTED)
class SpectralNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = parametrizations.spectral_norm(self.fc1)


@named(COMPUTED)
class OldSpectralNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.utils.spectral_norm(self.fc1)


@taken
class Normed1d(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(RD)

    def excite(self, s: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.norm(self.fc1(s)))))


@named("bn is a LayerNorm")
class LayerNormed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(RD)

    def excite(self, s: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.norm(self.fc1(s)))))


@named("drop drops numbers in training (p=0.1)")
class Dropped(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def excite(self, s: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(self.drop(F.relu(self.fc1(s)))))


@named("its forward calls dropout")
class DroppedByFunction(Base):
    def excite(self, s: Tensor) -> Tensor:
        return super().excite(F.dropout(s, 0.1, self.training))


class LayerAndActivation(nn.Module):
    def __init__(self, given: int, made: int, act: nn.Module) -> None:
        super().__init__()
        self.layer, self.act = nn.Conv2d(given, made, 1), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.layer(x))


@taken
class Nested(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = LayerAndActivation(C, RD, nn.SiLU())
        self.fc2 = LayerAndActivation(RD, C, nn.Sigmoid())

    def excite(self, s: Tensor) -> Tensor:
        return self.fc2(self.fc1(s))


@taken
class OwnEca(nn.Module):
    def __init__(self, k: int = 5, **options: Any) -> None:
        super().__init__()
        options = {"padding": k // 2, "bias": False, **options}
        self.mix = nn.Conv1d(1, 1, k, **options)

    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        s = self.mix(self.squeeze(x))
        return x * torch.sigmoid(s).transpose(1, 2).unsqueeze(-1)


@taken
class PooledEca(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gap, self.c = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.act = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(self.gap(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * self.act(y).expand_as(x) + x


@named("is not for maps (N, C, H, W)")
class EcaOfSequences(PooledEca):
    def __init__(self) -> None:
        super().__init__()
        self.gap = nn.AdaptiveAvgPool1d(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.act(self.c(self.gap(x).transpose(1, 2)).transpose(1, 2))


@named("computes something else")
class BackwardsEca(OwnEca):
    """Which a single channel would not show."""

    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))[:, [*range(x.shape[1] - 1, -1, -1)]].unsqueeze(1)


NAMED += [
    (lambda: OwnEca(bias=True), "conv has a bias"),
    (lambda: OwnEca(padding_mode="circular"), "mix has another padding than zeros"),
]
