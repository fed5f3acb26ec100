"""What lies inside a block may change, too: patched classes, code put in place, attributes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, backends
from tests import peers

timm = pytest.importorskip("timm", reason="timm is not installed")

FUSED = backends.select("auto", "cpu") != "reference"
C = 16
X = torch.randn(2, C, 5, 7, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    """A home-made block with an activation of timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.act = nn.Conv2d(C, 4, 1), nn.ReLU()
        self.two, self.gate = nn.Conv2d(4, C, 1), timm.layers.activations.HardSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        s = self.two(self.act(self.one(x.mean((2, 3), keepdim=True))))
        return x * self.gate(s)


def _own() -> nn.Module:
    return chattn_cuda.SqueezeExcite(C, gate_layer=timm.layers.activations.HardSigmoid)


#: A block, the class of something in it, and whether accelerate has to do with it.
INSIDE: dict[str, tuple[Callable[[], nn.Module], Any, bool]] = {
    "mmcv's layer": (lambda: peers.MMSELayer(C), peers.ConvModule, True),
    "mmcv's gate": (lambda: peers.MMSELayer(C), peers.HSigmoid, True),
    "lukemelas' layer": (lambda: peers.MBConvBlock(C, C), peers.Conv2dStaticSamePadding, True),
    "lukemelas' swish": (lambda: peers.MBConvBlock(C, C), peers.MemoryEfficientSwish, True),
    "timm's gate": (Gated, timm.layers.activations.HardSigmoid, True),
    "timm's gate in timm": (
        lambda: timm.layers.SEModule(C, gate_layer=timm.layers.activations.HardSigmoid),
        timm.layers.activations.HardSigmoid,
        True,
    ),
    "timm's gate in ours": (_own, timm.layers.activations.HardSigmoid, False),
}


def build(name: str) -> tuple[Any, Any, Any]:
    """The block, accelerated and called, a copy that is not, and the class inside."""
    torch.manual_seed(0)
    make, cls, _ = INSIDE[name]
    original: Any = make().eval()
    return accelerated(copy.deepcopy(original), INSIDE[name][2]), original, cls


def accelerated(module: Any, by: bool = True) -> Any:
    if by:
        assert accelerate(module).changed
    with torch.no_grad():
        for _ in range(2):
            module(X)
    if FUSED:
        assert chattn_cuda.explain(module, X).path == "fused"
    return module


def plainly(module: Any) -> Tensor:
    """What it gives by its submodules."""
    own = isinstance(module, chattn_cuda.SqueezeExcite)
    result: Tensor = (module.eager_forward if own else module)(X)
    return result


@torch.no_grad()
def assert_same(module: Any, original: Any) -> None:
    torch.testing.assert_close(module(X), plainly(original), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def assert_patched(module: Any, original: Any, before: Tensor) -> None:
    assert_same(module, original)
    assert not torch.allclose(module(X), before)
    assert chattn_cuda.explain(module, X).path == "eager"


def _tripled(cls: Any) -> Callable[..., Tensor]:
    own = cls.forward
    return lambda self, x: 3 * own(self, x)


@pytest.mark.parametrize("name", INSIDE)
def test_a_patched_class_inside_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, original, cls = build(name)
    before = module(X).detach()
    with monkeypatch.context() as patch:
        patch.setattr(cls, "forward", _tripled(cls))
        assert_patched(module, original, before)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert_same(other, original)
        again = copy.deepcopy(original)
        accelerate(again)
        assert_same(again, original)
    assert_same(module, original)
    if FUSED:
        assert chattn_cuda.explain(module, X).path == "fused"
    assert_same(accelerated(copy.deepcopy(original), INSIDE[name][2]), original)


_RELOADED: dict[Any, Any] = {
    peers.ConvModule: lambda self, x: 3 * self.conv(x),
    peers.Conv2dStaticSamePadding: lambda self, x: 2 * nn.functional.conv2d(
        self.static_padding(x), self.weight, None, self.stride, 0, 1, self.groups
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_code_inside_that_is_reloaded_in_place_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, original, cls = build(name)
    before = module(X).detach()
    code = _RELOADED.get(cls, lambda self, x: x / 7).__code__
    with monkeypatch.context() as patch:
        patch.setattr(cls.forward, "__code__", code)
        assert_patched(module, original, before)
    assert_same(module, original)


@pytest.mark.parametrize("cls", [timm.layers.EcaModule, timm.layers.SEModule, peers.SELayer])
def test_code_of_a_class_that_is_reloaded_in_place_runs(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cls(C).eval()
    module = accelerated(copy.deepcopy(original))
    with monkeypatch.context() as patch:
        patch.setattr(cls.forward, "__code__", (lambda self, x: x + 42).__code__)
        assert torch.equal(module(X), X + 42)
        assert chattn_cuda.explain(module, X).path == "eager"
        other = copy.deepcopy(original)
        report = accelerate(other)
        assert not report.changed and torch.equal(other(X), X + 42)
    assert_same(module, original)
    assert accelerate(other).changed
    assert_same(other, original)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("backend", ["auto", "cpu" if FUSED else "reference"])
def test_a_patch_inside_is_compiled(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, original, cls = build(name)
    module.backend = backend
    for patched in (False, True):
        torch._dynamo.reset()
        if patched:
            monkeypatch.setattr(cls, "forward", _tripled(cls))
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(X), plainly(original), rtol=1e-5, atol=1e-6)
        program = torch.export.export(module, (X,)).module()
        torch.testing.assert_close(program(X), plainly(original), rtol=1e-5, atol=1e-6)


# ---- attributes of what lies inside -------------------------------------------------------------


class OfALayer(Gated):
    """Reads an attribute of a layer of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sigmoid()
        self.two.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        s = self.two(self.act(self.one(x.mean((2, 3), keepdim=True))))
        return x * self.gate(s) * self.two.factor


class Quoted(OfALayer):
    def forward(self, x: Tensor) -> Tensor:
        return Gated.forward(self, x) * getattr(self.two, "factor", 1.0)


class Absent(Quoted):
    def __init__(self) -> None:
        super().__init__()
        del self.two.factor


class ScaleModule(OfALayer):
    def __init__(self) -> None:
        super().__init__()
        self.scale_module = nn.Identity()
        self.scale_module.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return Gated.forward(self, x) * self.scale_module.factor


class ReadStructure(peers.SELayer):
    """Known by what it consists of, if it read nothing."""

    def __init__(self) -> None:
        super().__init__(C)
        self.fc[0].factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.fc[0].factor


class Scaled(peers.ConvModule):
    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(super().forward(x))

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.factor


class ScaledByItself(Scaled):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.factor = 1.0


class ScaledByName(peers.ConvModule):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * getattr(self, "factor", 1.0)


def _with_conv(cls: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = peers.MMSELayer(C)
        module.conv2 = cls(4, C, nn.Sigmoid(), True)
        return module

    return make


class ScaledMBConv(peers.MBConvBlock):
    """Reads attributes in the midst of SE, which its forward computes itself."""

    def __init__(self) -> None:
        super().__init__(C, C)
        self.factor = self._se_expand.factor = 1.0

    def excited(self, x: Tensor) -> Tensor:
        return super().excited(x) * self.factor * self._se_expand.factor


class HSigmoid(peers.HSigmoid):
    """With an attribute of its class."""

    bias = 3.0

    def __init__(self) -> None:
        super().__init__()
        del self.__dict__["bias"]


def _with_gate() -> nn.Module:
    module = peers.MMSELayer(C)
    module.conv2.activate = HSigmoid()
    return module


def _set(path: str, value: Any) -> Callable[[Any], None]:
    layer, _, name = path.rpartition(".")
    return lambda m: setattr(m.get_submodule(layer), name, value)


def _replaced(m: Any) -> None:
    other = Scaled(4, C, m.conv2.activate, True).eval()
    other.conv, other.factor = m.conv2.conv, 3.0
    m.conv2 = other


CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], None]]] = {
    "of a layer": (OfALayer, _set("two.factor", 3.0)),
    "of a layer, quoted": (Quoted, _set("two.factor", 3.0)),
    "of a layer, later": (Absent, _set("two.factor", 3.0)),
    "of an identity": (ScaleModule, _set("scale_module.factor", 3.0)),
    "of a structure's layer": (ReadStructure, _set("fc.0.factor", 3.0)),
    "of another's layer": (_with_conv(ScaledByItself), _set("conv2.factor", 3.0)),
    "of another's layer, later": (_with_conv(ScaledByName), _set("conv2.factor", 3.0)),
    "of another's class": (_with_conv(Scaled), _set("conv2.factor", 3.0)),
    "of a gate's class": (_with_gate, _set("conv2.activate.bias", 1.0)),
    "of a whole block": (ScaledMBConv, _set("factor", 3.0)),
    "of a whole block's layer": (ScaledMBConv, _set("_se_expand.factor", 3.0)),
    "another class": (_with_conv(peers.ConvModule), _replaced),
}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_an_attribute_inside_is_seen(name: str, copied: bool) -> None:
    torch.manual_seed(0)
    make, change = CHANGES[name]
    original: Any = make().eval()
    module = accelerated(copy.deepcopy(original))
    if copied:
        module = accelerated(pickle.loads(pickle.dumps(module)), by=False)
    before = module(X).detach()
    change(module), change(original)
    assert_patched(module, original, before)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(X), original(X), rtol=1e-5, atol=1e-6)


def test_an_attribute_of_a_class_inside_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Any = _with_conv(Scaled)().eval()
    module = accelerated(copy.deepcopy(original))
    before = module(X).detach()
    monkeypatch.setattr(Scaled, "factor", 3.0)
    assert_patched(module, original, before)
    accelerate(module)
    assert_same(module, original)


class Listed(Scaled):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.factors = [1.0]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factors[0]


class Buffered(Scaled):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("bypass", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x) if self.bypass else super().forward(x)


class BufferedLayer(OfALayer):
    def __init__(self) -> None:
        super().__init__()
        self.two.register_buffer("bypass", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.two.bypass else super().forward(x)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_with_conv(Listed), "conv2.factors"),
        (_with_conv(Buffered), "conv2.bypass"),
        (BufferedLayer, "two.bypass"),
    ],
)
def test_what_may_change_in_place_leaves_the_block(make: Any, name: str) -> None:
    (entry,) = accelerate(make()).left
    assert entry.note == f"it is built like the block, but reads {name}, which may change"
