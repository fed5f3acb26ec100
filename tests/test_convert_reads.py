"""What a home-made block reads from elsewhere may change: it is seen, or the block is left."""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import SqueezeExcite, accelerate, backends, methods
from chattn_cuda.convert import reads

FUSED = backends.select("auto", "cpu") != "reference"
C = 16
FACTOR = 1.0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(C, 4, 1), nn.Conv2d(4, C, 1)

    def excited(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.two(F.relu(self.one(s))))

    def forward(self, x: Tensor) -> Tensor:
        return self.excited(x)


class OfItself(Block):
    def __init__(self) -> None:
        super().__init__()
        self.factor: Any = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.excited(x) * self.factor


class Quoted(OfItself):
    def forward(self, x: Tensor) -> Tensor:
        return self.excited(x) * getattr(self, "factor", 1.0)


class Nested(OfItself):
    def forward(self, x: Tensor) -> Tensor:
        scaled = lambda y: y * self.factor  # noqa: E731
        return scaled(self.excited(x))


class Super(OfItself):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class OfClass(Block):
    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.excited(x) * self.factor


class Property(Block):
    hidden = 1.0

    @property
    def factor(self) -> float:
        return self.hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.excited(x) * self.factor


class Global(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.excited(x) * FACTOR


SETTINGS = types.SimpleNamespace(factor=1.0)


class GlobalObject(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.excited(x) * SETTINGS.factor


def _around(factor: list[float]) -> type[Block]:
    class Inside(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.excited(x) * factor[0]

    return Inside


class Flag(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bypass", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.bypass else self.excited(x)


class Log(Block):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.excited(x)


class OwnClass(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super(self.__class__, self).forward(x)


class Single(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x if len(x) == 1 else self.excited(x)


class SELayer(nn.Module):
    """As moskomule's, which is known by its structure."""

    def __init__(self) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(C, 4, bias=False), nn.ReLU(), nn.Linear(4, C, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        return x * self.fc(self.avg_pool(x).view(b, c)).view(b, c, 1, 1)


class OfStructure(SELayer):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return SELayer.forward(self, x) * self.factor


class SuperOfStructure(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


X = torch.randn(2, C, 5, 7)


def accelerated(module: Any) -> tuple[Any, Any, Any]:
    """The module, accelerated and called, a copy that is not, and the report."""
    original = copy.deepcopy(module)
    report = accelerate(module)
    for _ in range(2):
        module(X), module(X.detach().requires_grad_())
    return module, original, report


def assert_same(module: Any, original: Any) -> None:
    torch.testing.assert_close(module(X), original(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [OfItself, Quoted, Nested, Super, OfStructure])
def test_an_attribute_of_the_module_is_seen(cls: Any) -> None:
    module, original, report = accelerated(cls())
    assert len(report.changed) == 1
    assert_same(module, original)
    if FUSED:
        assert chattn_cuda.explain(module, X).path == "fused"
    module.factor = original.factor = 3.0
    assert_same(module, original)
    assert chattn_cuda.explain(module, X).path == "eager"


def test_an_attribute_that_comes_later_is_seen() -> None:
    module = Quoted()
    del module.factor
    module, original, report = accelerated(module)
    assert len(report.changed) == 1
    module.factor = original.factor = 3.0
    assert_same(module, original)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (OfClass, "the class attribute factor"),
        (Property, "the property factor"),
        (Global, "the global FACTOR"),
        (GlobalObject, "the global SETTINGS"),
        (_around([1.0]), "the variable factor of the function around it"),
        (Flag, "bypass"),
        (Log, "sizes"),
        (OwnClass, "its own class"),
    ],
)
def test_what_is_in_no_module_leaves_the_block(cls: Any, reason: str) -> None:
    (entry,) = accelerate(cls()).left
    assert entry.note == f"it looks like the block, but its forward reads {reason}"


def test_a_block_that_skips_single_samples_is_left() -> None:
    (entry,) = accelerate(Single()).left
    assert entry.note == "it is built like the block, but computes something else for other maps"


def test_code_that_is_reloaded_in_place_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As IPython's autoreload puts it into the functions that there are."""
    module, original, _ = accelerated(Block())
    assert_same(module, original)
    with monkeypatch.context() as patch:
        patch.setattr(Block.forward, "__code__", (lambda self, x: 5 * x).__code__)
        assert torch.equal(module(X), 5 * X)
        assert chattn_cuda.explain(module, X).path == "eager"
    assert_same(module, original)


@pytest.mark.parametrize("cls", [Super, SuperOfStructure])
def test_a_patched_base_behind_super_runs(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, original, report = accelerated(cls())
    assert len(report.changed) == 1
    monkeypatch.setattr(cls.__mro__[1], "forward", lambda self, x: 5 * x)
    assert torch.equal(module(X), 5 * X)
    assert chattn_cuda.explain(module, X).path == "eager"
    monkeypatch.undo()
    assert_same(module, original)


def test_names_are_found_wherever_they_are() -> None:
    assert methods.methods_called(Super) == ("forward", "excited")
    for cls in (OfItself, Quoted, Nested, Super):
        assert reads.attributes_read(cls(), cls) == {"factor"}
    module = Quoted()
    del module.factor
    assert reads.attributes_read(module, Quoted) == {"factor"}


# ---- layers -------------------------------------------------------------------------------------
class Dropping(Block):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.drop(self.two(F.relu(self.one(s)))))


def test_a_dropout_that_is_raised_drops() -> None:
    module, original, report = accelerated(Dropping())
    assert len(report.changed) == 1
    for m in (module, original):
        m.drop.p = 0.9999
    for training in (True, False):
        found = []
        for m in (module.train(training), original.train(training)):
            torch.manual_seed(0)
            found.append(m(X))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "first"),
    [
        (lambda: timm.layers.SEModule(C, rd_channels=C), False),
        (lambda: SqueezeExcite(C, rd_channels=C), False),
        (lambda: SqueezeExcite(C, rd_channels=C), True),
    ],
)
def test_a_shared_layer_that_is_replaced_in_one_place(
    build: Callable[[], Any], first: bool
) -> None:
    module = build()
    module.fc2 = module.fc1
    accelerated(module)
    setattr(module, "fc1" if first else "fc2", nn.Conv2d(C, C, 1))
    s = module.fc2(F.relu(module.fc1(X.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(module(X), X * s.sigmoid(), rtol=1e-5, atol=1e-6)


class Lazy(Block):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.LazyConv2d(4, 1)


class LazySELayer(Lazy):
    pass


def test_layers_without_sizes_are_left() -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))
    model = nn.Sequential(SELayer(), Lazy(), LazySELayer(), head)
    report = accelerate(model)
    assert [entry.name for entry in report.changed] == ["0"]
    assert [entry.name for entry in report.left] == ["2"]
    assert re.search("get their sizes in the first call", report.left[0].note)
    model(X)
    assert [entry.name for entry in accelerate(model).changed] == ["1", "2"]


class HardNorm(nn.Module):
    """The block of many ports of MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, C, 1, bias=False), nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.se(x)


def test_hard_sigmoid_behind_a_norm_is_the_block() -> None:
    module, original, report = accelerated(HardNorm())
    assert len(report.changed) == 1
    assert_same(module, original)
    if FUSED:
        assert chattn_cuda.explain(module.eval(), X).path == "fused"
