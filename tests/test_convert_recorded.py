"""What no trial shows, since the numbers are the same there: the recording of a forward does."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import accelerate
from tests import peers
from tests.kinds import RD, C
from tests.kinds.layers import Nested
from tests.kinds.products import Product, ProductModule, SCSEModule
from tests.kinds.squeezes import OwnPool


class Block(peers.SELayer):
    """As moskomule's, with the names that many copies have; subclasses do more."""

    def __init__(self) -> None:
        super().__init__(C)

    def gate(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        return self.fc(self.avg_pool(x).view(n, c)).view(n, c, 1, 1)  # type: ignore[no-any-return]


def with_forward(forward: Callable[[Any, Tensor], Tensor], base: Any = Block) -> nn.Module:
    body = {"forward": forward, "__module__": __name__}
    module: nn.Module = type("Home", (base,), body)(*(C, C) * (base is peers.MBConvBlock))
    return module


def clamped_in_training(self: Any, x: Tensor) -> Tensor:
    y = x * self.gate(x)
    return y.clamp(-60, 60) if self.training else y


def clamped_mbconv(self: Any, inputs: Tensor, drop_connect_rate: Any = None) -> Tensor:
    x = self._swish(self._bn1(self._depthwise_conv(inputs)))
    if self.has_se:
        x = self.excited(x).clamp(-60, 60)
    return self._bn2(self._project_conv(x))  # type: ignore[no-any-return]


FORWARDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "clamp": (lambda: with_forward(lambda s, x: (x * s.gate(x)).clamp(-50, 50)), "calls clamp"),
    "nan_to_num": (
        lambda: with_forward(lambda s, x: torch.nan_to_num(x) * s.gate(x)), "calls nan_to_num",
    ),
    "a clamped gate": (
        lambda: with_forward(lambda s, x: x * s.gate(x).clamp(min=1e-5)), "calls clamp",
    ),
    "large numbers": (
        lambda: with_forward(lambda s, x: x if x.abs().max() > 100 else x * s.gate(x)),
        "excites more than once",
    ),
    "finite numbers": (
        lambda: with_forward(lambda s, x: x * s.gate(x) if torch.isfinite(x).all() else x),
        "excites more than once",
    ),
    "clamp in training": (lambda: with_forward(clamped_in_training), "differs in train mode"),
    "scse": (
        lambda: with_forward(
            lambda s, x: (x * s.cSE(x) + x * s.sSE(x)).clamp(-60, 60), SCSEModule
        ),
        "but its forward is pool, layer, act, layer, act, mul, conv, act, other, add, other",
    ),
    "mbconv": (lambda: with_forward(clamped_mbconv, peers.MBConvBlock), "mul, other, conv"),
}  # fmt: skip


class Finite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(x).mean((2, 3), keepdim=True)


class ClampedProduct(Product):
    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return (x * s).clamp(-60, 60)


class ClampedIdentity(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-60, 60)


class ClampedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-60, 60))


class FiniteSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(torch.nan_to_num(x))


class Sigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


def holding(cls: Any, path: str, inner: nn.Module) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module: nn.Module = cls()
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, inner)
        return module

    return build


class WithIdentity(Block):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x * self.gate(x))  # type: ignore[no-any-return]


LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "pool": (holding(OwnPool, "pool", Finite()), "calls nan_to_num"),
    "product": (holding(ProductModule, "product", ClampedProduct()), "calls clamp"),
    "identity": (holding(WithIdentity, "out", ClampedIdentity()), "calls clamp"),
    "linear": (
        holding(Block, "fc.0", ClampedLinear(C, RD, bias=False)), "fc.0 is a ClampedLinear",
    ),
    "gate": (holding(Nested, "fc2.act", FiniteSigmoid()), "know gate (FiniteSigmoid)"),
    "dropout": (holding(WithIdentity, "out", type("Drop", (nn.Dropout,), {})(0.0)), "dropout"),
}  # fmt: skip
CASES = {**FORWARDS, **LAYERS}


@pytest.mark.parametrize("name", CASES)
def test_left_and_named(name: str) -> None:
    make, reason = CASES[name]
    report = accelerate(nn.Sequential(make()))
    assert not report.changed
    assert reason in report.left[0].note


@pytest.mark.parametrize(
    "build",
    [
        Block,
        WithIdentity,
        holding(Nested, "fc2.act", Sigmoid()),
        holding(Nested, "fc2.act", peers.HSigmoid()),
        holding(Nested, "fc1.act", peers.MemoryEfficientSwish()),
    ],
)
def test_what_does_the_same_is_taken(build: Callable[[], nn.Module]) -> None:
    assert accelerate(nn.Sequential(build())).changed


def test_what_is_loaded_is_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    file = pickle.dumps(accelerate(WithIdentity()).model)
    monkeypatch.setattr(WithIdentity, "forward", lambda s, x: (x * s.gate(x)).clamp(-50, 50))
    assert type(pickle.loads(file)) is WithIdentity
