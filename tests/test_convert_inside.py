"""What a block reads of what lies inside it, and the functions that it calls, may change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import accelerate
from tests import peers
from tests.test_convert_patches import C, Gated, X, accelerated, assert_patched, assert_same


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


class ScaledPrivately(peers.ConvModule):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self._factor


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
    "of another's layer, private": (_with_conv(ScaledPrivately), _set("conv2._factor", 3.0)),
    "of another's layer, later": (_with_conv(ScaledByName), _set("conv2.factor", 3.0)),
    "of another's class": (_with_conv(Scaled), _set("conv2.factor", 3.0)),
    "of a gate's class": (_with_gate, _set("conv2.activate.bias", 1.0)),
    "of a whole block": (ScaledMBConv, _set("factor", 3.0)),
    "of a whole block's layer": (ScaledMBConv, _set("_se_expand.factor", 3.0)),
    "of a layer, to a tensor": (OfALayer, _set("two.factor", torch.full((C, 1, 1), 3.0))),
    "of another's layer, to a tensor": (
        _with_conv(ScaledByItself), _set("conv2.factor", torch.full((C, 1, 1), 3.0)),
    ),
    "of a whole block, to a tensor": (ScaledMBConv, _set("factor", torch.full((C, 1, 1), 3.0))),
    "another class": (_with_conv(peers.ConvModule), _replaced),
}  # fmt: skip


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


# ---- functions that a forward calls -------------------------------------------------------------


def unscaled(s: Tensor) -> Tensor:
    return s


def scaled(layer: Any, s: Tensor) -> Tensor:
    return unscaled(s) * layer.factor


class Helped(OfALayer):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(self.two, Gated.forward(self, x))


class HelpedLayer(peers.ConvModule):
    def forward(self, x: Tensor) -> Tensor:
        return unscaled(super().forward(x))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("make", [Helped, _with_conv(HelpedLayer)], ids=["block", "layer"])
def test_a_patched_function_runs(
    make: Any, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make().eval()
    module = accelerated(copy.deepcopy(original))
    before = module(X).detach()
    with monkeypatch.context() as patch:
        if in_place:
            patch.setattr(unscaled, "__code__", (lambda s: 3 * s).__code__)
        else:
            patch.setitem(globals(), "unscaled", lambda s: 3 * s)
        assert_patched(module, original, before)
    assert_same(module, original)


def test_an_attribute_that_a_function_reads_is_seen() -> None:
    original: Any = Helped().eval()
    module = accelerated(copy.deepcopy(original))
    before = module(X).detach()
    module.two.factor = original.two.factor = 3.0
    assert_patched(module, original, before)


FACTOR = 1.0


def by_a_global(s: Tensor) -> Tensor:
    return s * FACTOR


class HelpedByAGlobal(OfALayer):
    def forward(self, x: Tensor) -> Tensor:
        return by_a_global(super().forward(x))


def test_a_global_that_a_function_reads_leaves_the_block() -> None:
    (entry,) = accelerate(HelpedByAGlobal()).left
    assert entry.note == "it looks like the block, but its forward reads the global FACTOR"
