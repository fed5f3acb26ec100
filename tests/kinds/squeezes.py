"""How the map is squeezed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool, SelectAdaptivePool2d
from torch import Tensor, nn

from tests.kinds import NAMED, RD, TAKEN, Base, C, Convolutions, named, taken


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
    _pooled_by(PrivatePool),
]
NAMED += [
    (_pooled_by(ScaledPool), "computes something else"),
    (_pooled_by(lambda: nn.AdaptiveMaxPool2d(1)), "squeezes with AdaptiveMaxPool2d, not the mean"),
    (_pooled_by(lambda: nn.AvgPool2d(7)), "make it nn.AdaptiveAvgPool2d(1)"),
    (_pooled_by(lambda: SelectAdaptivePool2d(pool_type="avgmax")), "excites more than once"),
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
