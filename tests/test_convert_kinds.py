"""The ways in which people write channel attention: each is taken, or in the report with a reason.

A class for each way, with what is to come of it: "taken", or a part of the reason.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool, SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import chattn_cuda
from chattn_cuda import accelerate, backends, restore
from tests.test_convert_dataflow import assert_same, maps, run

FUSED = backends.select("auto", "cpu") != "reference"
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


# ---- the squeeze --------------------------------------------------------------------------------


@taken
class SumOverSize(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.sum((2, 3)) / (x.shape[2] * x.shape[3])


@taken
class SumTimesInverse(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return torch.sum(x, dim=(2, 3)).mul(1 / (x.size(2) * x.size(3)))


@taken
class MeanOfMeans(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean(-1).mean(-1)


@taken
class FlattenedMean(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


@taken
class EinsumMean(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw->nc", x) / x[0, 0].numel()


@taken
class PooledByItsShape(Convolutions):
    def squeeze(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, x.shape[2:])


@taken
class AdaptivelyPooled(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)


class GlobalAvgPool(nn.Module):
    def __init__(self, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), -1).mean(-1).view(*x.shape[:2], *[1, 1] * self.keep)


def _pooled_by(pool: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = OwnPool()
        module.pool = pool()
        return module

    return build


@taken
class OwnPool(Base):
    def __init__(self) -> None:
        super().__init__()
        self.pool: nn.Module = GlobalAvgPool()

    def squeeze(self, x: Tensor) -> Tensor:
        return self.pool(x).flatten(1)


class ScaledPool(GlobalAvgPool):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class PrivatePool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._power = 1

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self._power


TAKEN += [
    _pooled_by(lambda: SelectAdaptivePool2d(pool_type="avg")),
    _pooled_by(lambda: SelectAdaptivePool2d(pool_type="avg", flatten=True)),
    _pooled_by(lambda: SelectAdaptivePool2d(pool_type="fast", flatten=True)),
    _pooled_by(FastAdaptiveAvgPool),
]
NAMED += [
    (_pooled_by(ScaledPool), "computes something else"),
    (_pooled_by(PrivatePool), "its forward reads pool._power"),
    (_pooled_by(lambda: nn.AdaptiveMaxPool2d(1)), "squeezes with AdaptiveMaxPool2d, not the mean"),
    (_pooled_by(lambda: nn.AvgPool2d(7)), "make it nn.AdaptiveAvgPool2d(1)"),
    (_pooled_by(lambda: SelectAdaptivePool2d(pool_type="avgmax")), "computes something else"),
]


@named("squeezes with amax, not the mean")
class Maximum(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


@named("squeezes with max, not the mean")
class MaximumOfMaxima(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.flatten(2).max(-1)[0]


@named("squeezes with std, not the mean")
class Deviation(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.flatten(2).std(-1)


@named("computes something else")
class JustTheSum(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.sum((2, 3))


@named("squeezes or excites more than once")
class MeanAndMaximum(Base):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + x.amax((2, 3))


@named("squeezes or excites more than once")
class MeanBesideMaximum(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * C, RD)

    def squeeze(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


@named("squeezes or excites more than once")
class Cbam(Convolutions):
    """Its channel attention, which shares the layers."""

    def forward(self, x: Tensor) -> Tensor:
        s = [
            self.fc2(F.relu(self.fc1(f(x, 1))))
            for f in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
        ]
        return torch.sigmoid(s[0] + s[1])


# ---- the layers ---------------------------------------------------------------------------------


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


@named("y does not depend on fc1.bias")
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


# ---- the convolution over the channels ----------------------------------------------------------


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


@named("computes something else")
class BackwardsEca(OwnEca):
    """Which a single channel would not show."""

    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))[:, [*range(x.shape[1] - 1, -1, -1)]].unsqueeze(1)


NAMED += [
    (lambda: OwnEca(bias=True), "conv has a bias"),
    (lambda: OwnEca(padding_mode="circular"), "mix has another padding than zeros"),
]


# ---- the gate -----------------------------------------------------------------------------------


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


# ---- the product, and what is returned ----------------------------------------------------------


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


def _name(value: Any) -> str:
    return getattr(value, "__name__", str(value)).replace("build", "pool")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("build", TAKEN, ids=_name)
def test_taken(build: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    module = build().double().train(training)
    plain, x = copy.deepcopy(module), maps()
    report = accelerate(nn.Sequential(module))
    assert [e.name for e in report.changed] == ["0"] and not report.left, str(report)
    normed = any(isinstance(m, nn.BatchNorm1d) for m in module.modules())
    if FUSED and not (training and normed):
        assert chattn_cuda.explain(module, x).path == "fused"
    if isinstance(plain, PooledEca):
        plain.act = _HardSigmoid()  # torch's has no exact gradient
    assert_same(run(module, x), run(plain, x))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert chattn_cuda.explain(other, x).path == chattn_cuda.explain(module, x).path
        assert_same(other.eval()(x).detach(), plain.eval()(x).detach())
    restore(module)
    assert type(module) is type(plain)


class _HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("build", "reason"), NAMED, ids=_name)
def test_named(build: Callable[[], nn.Module], reason: str) -> None:
    module = build()
    report = accelerate(nn.Sequential(module))
    assert not report.changed and type(module) is type(build())
    assert len(report.left) == 1 and reason in report.left[0].note, str(report)


@pytest.mark.parametrize(
    "build", [OwnPool, Nested, OwnEca, PooledEca, Normed1d, LinearByHand, OnePlus, SCSEModule]
)
def test_compiled_and_exported(build: Callable[[], nn.Module]) -> None:
    torch._dynamo.reset()
    module, x = build().eval(), maps().float()
    expected = module(x).detach()
    accelerate(module)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).detach(), expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x).detach(), expected)


# ---- what changes behind accelerate -------------------------------------------------------------


class AnotherPool(GlobalAvgPool):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


AnotherPool.__qualname__ = GlobalAvgPool.__qualname__  # as a notebook that runs a cell again


def _replace(m: Any) -> None:
    m.pool = AnotherPool()


def _set(m: Any) -> None:
    m.pool.keep = True


def _hook(m: Any) -> None:
    m.pool.register_forward_hook(lambda module, inputs, y: 3 * y)


def _instance(m: Any) -> None:
    m.pool.forward = lambda x: x.amax((2, 3))


@pytest.mark.parametrize("change", [_replace, _set, _hook, _instance])
def test_a_change_inside_is_seen(change: Callable[[Any], None]) -> None:
    module, x = accelerate(OwnPool().double()).model, maps()
    module(x)
    change(module)
    plain = restore(copy.deepcopy(module)).model
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)
    assert chattn_cuda.explain(module, x).path == "eager"


def test_a_patched_class_inside_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = accelerate(OwnPool().double()).model, maps()
    module(x)
    monkeypatch.setattr(GlobalAvgPool, "forward", lambda self, x: x.amax((2, 3)))
    plain = restore(copy.deepcopy(module)).model
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)


def _norm_statistics(m: Any) -> None:
    m.norm.running_mean += 1


def _norm_train(m: Any) -> None:
    m.norm.train()


@pytest.mark.parametrize("change", [_norm_statistics, _norm_train])
def test_a_changed_norm_is_seen(change: Callable[[Any], None]) -> None:
    module, x = accelerate(Normed1d().double().eval()).model, maps()
    module(x)
    change(module)
    plain = restore(copy.deepcopy(module)).model
    torch.testing.assert_close(module(x), plain(x))


def test_a_gate_inside_is_no_block_of_its_own() -> None:
    module = accelerate(TimesItsGate()).model
    report = accelerate(module)
    assert len(report.again) == 1 and not report.left
    assert len(restore(module).changed) == 1


# ---- what is no block ---------------------------------------------------------------------------

MODELS = [
    "resnet50", "efficientnet_b0", "mobilenetv3_large_100", "regnety_032", "convnext_tiny",
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "densenet121", "gmlp_s16_224",
    "focalnet_tiny_srf", "davit_tiny", "halonet26t", "mixer_s16_224", "convnextv2_atto",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_hold_nothing_else(name: str) -> None:
    assert not accelerate(timm.create_model(name)).left


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_segmentation_models_hold_nothing_else(name: str) -> None:
    """Their heads pool and have layers, and the second multiplies by a gate of another map."""
    build = getattr(torchvision.models.segmentation, name)
    assert not accelerate(build(weights=None, weights_backbone=None)).left


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


@pytest.mark.parametrize(
    "build",
    [MlpHead, AsppPooling, StyleModulation, Glu, SpatialGate, InstanceNorm, GlobalContext,
     MultiLabelHead, lambda: MlpHead(10)],
    ids=_name,
)  # fmt: skip
def test_what_is_no_block(build: Callable[[], nn.Module]) -> None:
    report = accelerate(nn.Sequential(build()))
    assert not report.left and not report.changed
