"""What lies inside a block may change, too: patched classes, code that is put in place."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, backends, restore
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


@pytest.mark.parametrize(
    "make", [Gated, lambda: timm.layers.SEModule(C)], ids=["home-made", "timm"]
)
def test_a_forward_that_was_kept_runs_after_restore(make: Callable[[], Any]) -> None:
    module = make()
    expected = module(X)
    forward = accelerate(module).model.forward
    module.forward = lambda x: 2 * forward(x)
    for _ in range(2):
        torch.testing.assert_close(module(X), 2 * expected)
        restore(module)
