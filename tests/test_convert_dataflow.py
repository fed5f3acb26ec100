"""SE blocks under any names: what is recognised by its dataflow, and what is refused, and why."""

from __future__ import annotations

import copy
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, backends, restore
from chattn_cuda.convert import dataflow
from tests import peers

FUSED = backends.select("auto", "cpu") != "reference"
C = 16


class Pretrained(nn.Module):
    """As in pretrained-models and the encoders of segmentation_models_pytorch."""

    def __init__(self, channels: int = C, reduction: int = 4) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // reduction, kernel_size=1, padding=0)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, kernel_size=1, padding=0)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        module_input = x
        x = self.fc2(self.relu(self.fc1(self.avg_pool(x))))
        return module_input * self.sigmoid(x)


class MobileOne(nn.Module):
    """As in ml-mobileone: functional pooling and activations."""

    def __init__(self, in_channels: int = C) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, 4, kernel_size=1)
        self.expand = nn.Conv2d(4, in_channels, kernel_size=1)

    def forward(self, inputs: Tensor) -> Tensor:
        _, c, h, w = inputs.size()
        x = F.avg_pool2d(inputs, kernel_size=[h, w])
        x = torch.sigmoid(self.expand(F.relu(self.reduce(x))))
        return inputs * x.view(-1, c, 1, 1)


class Sequentials(nn.Module):
    def __init__(self, channels: int = C) -> None:
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d((1, 1))
        self.excitation = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, 4, bias=False), nn.SiLU(), nn.Dropout(0.0),
            nn.Linear(4, channels, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.excitation(self.squeeze(x))[:, :, None, None].expand_as(x) * x


class Means(nn.Module):
    """Squeezes by view and mean, as in ai-med's squeeze_and_excitation; a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, 8), nn.Linear(8, C)
        self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid()
        self.factor = 1.0

    def forward(self, input_tensor: Tensor) -> Tensor:
        return torch.mul(input_tensor, self.gate(input_tensor))

    def gate(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        s = self.relu(self.fc1(x.view(n, c, -1).mean(dim=2)))
        return self.factor * self.sigmoid(self.fc2(s)).view(n, c, 1, 1)


class Residual(Pretrained):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class ResidualInPlace(Pretrained):
    def forward(self, features: Tensor) -> Tensor:
        y = super().forward(features)
        y += features
        return y


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.squash = nn.Conv2d(C, C, 1), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.squash(self.mix(x.mean((2, 3), keepdim=True)))


class Normed(Pretrained):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        s = self.relu(self.norm(self.fc1(self.avg_pool(x))))
        return x * self.sigmoid(self.fc2(s))


class SmpBlock(peers.MBConvBlock):
    """As in segmentation_models_pytorch: another flag, Identities where nothing is expanded."""

    def __init__(self, expand: int) -> None:
        super().__init__(C, C, expand)
        del self.has_se
        self._has_se = True
        if expand == 1:
            self._expand_conv, self._bn0 = nn.Identity(), nn.Identity()

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        x = self._swish(self._bn0(self._expand_conv(inputs)))
        x = self._swish(self._bn1(self._depthwise_conv(x)))
        if self._has_se:
            x = self.excited(x)
        return self._bn2(self._project_conv(x)) + inputs


BUILD: dict[str, Callable[[], nn.Module]] = {
    "pretrained-models": Pretrained,
    "mobileone": MobileOne,
    "sequentials": Sequentials,
    "means": Means,
    "residual": Residual,
    "residual-in-place": ResidualInPlace,
    "one-layer": OneLayer,
    "norm": Normed,
    "smp-mbconv": lambda: SmpBlock(2),
    "smp-mbconv-identity": lambda: SmpBlock(1),
}


def maps() -> Tensor:
    return torch.randn(2, C, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    y = module(leaf)
    y.sin().sum().backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return [y.detach(), leaf.grad, *grads, *(b.clone() for b in module.buffers())]


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", BUILD)
def test_same_numbers(name: str, training: bool, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    module = BUILD[name]().double().train(training)
    plain, x = copy.deepcopy(module), maps().contiguous(memory_format=layout)
    if isinstance(plain, OneLayer):
        plain.squash = peers.HSigmoid()  # torch's has no exact gradient
    report = accelerate(nn.Sequential(module))
    assert [e.name for e in report.changed] == ["0"] and not report.left, str(report)
    if FUSED and not (training and name == "norm"):
        assert chattn_cuda.explain(module, x).path == "fused"
    assert_same(run(module, x), run(plain, x))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert_same(other.eval()(x).detach(), plain.eval()(x).detach())
    restore(module)
    assert type(module) is type(plain)


@pytest.mark.parametrize("name", ["pretrained-models", "mobileone", "residual", "sequentials"])
def test_compiled_and_exported(name: str) -> None:
    torch._dynamo.reset()
    module, x = BUILD[name]().eval(), maps().float()
    expected = module(x).detach()
    accelerate(module)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).detach(), expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x).detach(), expected)
    traced = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(traced(x).detach(), expected)


# ---- what changes behind accelerate -------------------------------------------------------------


def _pool(m: Any) -> None:
    m.avg_pool = nn.AdaptiveMaxPool2d(1)


def _insert(m: Any) -> None:
    m.fc1 = nn.Sequential(m.fc1, nn.Tanh())


def _hook(m: Any) -> None:
    m.fc2.register_forward_hook(lambda module, inputs, y: 3 * y)


def _activation(m: Any) -> None:
    m.relu = nn.PReLU()


@pytest.mark.parametrize("change", [_pool, _insert, _hook, _activation])
def test_a_change_is_seen(change: Callable[[Any], None]) -> None:
    module = accelerate(Pretrained().double()).model
    module(maps())
    change(module.double())
    module.double()
    plain = restore(copy.deepcopy(module)).model
    torch.testing.assert_close(module(maps()), plain(maps()), rtol=0, atol=0)
    assert chattn_cuda.explain(module, maps()).path == "eager"


def test_a_changed_setting_is_seen() -> None:
    module: Any = accelerate(Means().double()).model
    x = maps()
    before = module(x)
    module.factor = 2.0
    torch.testing.assert_close(module(x), 2 * before)
    assert chattn_cuda.explain(module, x).path == "eager"
    assert not accelerate(restore(module).model).changed


def test_other_ranks_are_left_to_the_forward() -> None:
    """A map without a batch whose height is C would fit as (N, C, L)."""
    plain = Pretrained()
    module = accelerate(copy.deepcopy(plain)).model
    for shape in ((C, 5, 7), (C, C, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)


# ---- what is refused ----------------------------------------------------------------------------


class Spatial(Pretrained):
    """CBAM's: the layers run twice."""

    def forward(self, x: Tensor) -> Tensor:
        s = [self.fc2(self.relu(self.fc1(p))) for p in (self.avg_pool(x), x.amax((2, 3), True))]
        return x * self.sigmoid(s[0] + s[1])


class Squared(Pretrained):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


class Late(Pretrained):
    def forward(self, x: Tensor) -> Tensor:
        return self.sigmoid(x * self.fc2(self.relu(self.fc1(self.avg_pool(x)))))


class OddGate(Pretrained):
    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = nn.Softsign()


class Listed(Pretrained):
    def __init__(self) -> None:
        super().__init__()
        self.scales = {"all": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scales["all"]


class Unused(Pretrained):
    def __init__(self) -> None:
        super().__init__()
        self.smaller = nn.MaxPool2d(2)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Conv2d(C, 4, 1), nn.ReLU(), nn.Conv2d(4, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Clamped(Pretrained):
    """Which only gates near 0 and 1 show."""

    def forward(self, x: Tensor) -> Tensor:
        s = self.fc2(self.relu(self.fc1(self.avg_pool(x))))
        return x * self.sigmoid(s).clamp(1e-4, 1 - 1e-4)


class OfItsType(Pretrained):
    def forward(self, x: Tensor) -> Tensor:
        s = self.fc2(self.relu(self.fc1(self.avg_pool(x))))
        return x * self.sigmoid(s + 1 if x.dtype == torch.float32 else s)


class OfItsBatch(Pretrained):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + x if len(x) > 8 else y


class OfItsSize(Pretrained):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if x.shape[-1] < 32 else y + x


class InPlace(Pretrained):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            return super().forward(x)
        x *= self.sigmoid(self.fc2(self.relu(self.fc1(self.avg_pool(x)))))
        return x


class SEAlone(Pretrained):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("maps are 224 x 224")


ELSEWHERE = "it is built like the block, but computes something else for other maps"


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Spatial, "it looks like the block, but squeezes or excites more than once"),
        (Squared, "it looks like the block, but its forward calls pow"),
        (Clamped, "it looks like the block, but its forward calls clamp"),
        *((c, ELSEWHERE) for c in (OfItsType, OfItsBatch, OfItsSize, InPlace)),
        (Late, "it looks like the block, but its forward is pool, layer, act, layer, mul, act"),
        (OddGate, "the kernels do not know gate (Softsign)"),
        (Listed, "it looks like the block, but its forward reads scales"),
        (Unused, "it looks like the block, but has a MaxPool2d in it"),
        (SEAlone, "it is called like a block, but fails on a small map: maps are 224 x 224"),
    ],
)
def test_what_looks_like_a_block(build: Callable[[], nn.Module], reason: str) -> None:
    module = build()
    report = accelerate(nn.Sequential(module))
    assert not report.changed and type(module) is type(build())
    assert [e.note for e in report.left] == [reason]
    assert "how to port what was left: docs/porting.md" in str(report)


def test_what_does_not_look_like_one() -> None:
    model = nn.Sequential(
        Mlp(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, C, 1), nn.Sigmoid())
    )
    report = accelerate(model)
    assert not report.changed and not report.left


def test_many_blocks_are_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Any] = []
    record = dataflow.record
    monkeypatch.setattr(dataflow, "record", lambda m: records.append(m) or record(m))

    class Mine(Pretrained):
        pass

    model = nn.Sequential(*(Mine(c) for c in [64] * 10 + [128] * 10 + [256] * 10))
    start = time.process_time()
    assert len(accelerate(model).changed) == 30 and len(records) == 3
    assert time.process_time() - start < 2


def test_the_documented_port() -> None:
    """The code of docs/porting.md, with and without biases."""
    document = Path(__file__).parents[1] / "docs" / "porting.md"
    port, load = re.findall(r"```python\n(.*?)```", document.read_text(), re.S)
    x = maps().float()
    for block in (peers.SELayer(C), peers.ChannelSELayer(2, C)):
        block.fc[1] = nn.ReLU()
        model: Any = nn.Module()
        model.layer1 = nn.ModuleList([nn.Module()])
        model.layer1[0].se = block
        checkpoint, expected = copy.deepcopy(model.state_dict()), block(x)
        scope = {"model": model, "checkpoint": checkpoint}
        exec(port, scope)
        assert isinstance(model.layer1[0].se, chattn_cuda.SqueezeExcite)
        torch.testing.assert_close(model.layer1[0].se(x), expected)
        for layer in (model.layer1[0].se.fc1, model.layer1[0].se.fc2):
            nn.init.ones_(layer.weight)
        exec(load, scope)
        torch.testing.assert_close(model.layer1[0].se(x), expected)


def test_what_holds_a_block_is_none_itself() -> None:
    """A network's head pools and has a layer, too."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = OneLayer()
            self.head = nn.Linear(C, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x).mean((2, 3))).sigmoid()

    report = accelerate(Network())
    assert [entry.name for entry in report.changed] == ["block"] and not report.left
