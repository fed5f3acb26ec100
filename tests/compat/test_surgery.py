"""Tools that change the layers of a model, or look at them one by one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

import timm  # noqa: E402

from chattn_cuda import accelerate, explain, restore  # noqa: E402
from tests.compat.features import feature  # noqa: E402
from tests.compat.models import FUSED, assert_same, images, pair  # noqa: E402

SECTION = "Changing and watching layers"


def convolutions(model: Any) -> int:
    graph = torch.export.export(model, (images(),)).graph
    return sum(n.target == torch.ops.aten.conv2d.default for n in graph.nodes)


@feature(
    SECTION,
    "PT2E quantisation",
    "yes",
    'of programs with plain operations, as `backend="auto"` exports them; with a named backend '
    "`restore(model)` first: the operators have the blocks' layers inside, which stay in float",
)
def test_quantisation_of_programs() -> None:
    """A quantiser looks for the convolutions in the program."""
    plain = pair()[1].eval()
    plain.blocks = plain.blocks[:-1]  # but for the package's own module
    expected = convolutions(plain)
    for backend, all_there in (("auto", True), ("cpu", not FUSED)):
        fast = copy.deepcopy(plain)
        assert accelerate(fast, backend if FUSED else "reference").changed
        assert (convolutions(fast) == expected) == all_there
        assert restore(fast).changed and convolutions(fast) == expected


@feature(
    SECTION,
    "structured pruning (Torch-Pruning)",
    "no",
    "`restore(model)` first, `accelerate` again behind: it follows the gradients' graph from layer "
    "to layer, and the operators are no layers",
)
def test_structured_pruning() -> None:
    """What such a tool does: fewer hidden channels, in a model that has its own classes."""
    model = timm.layers.SplitAttn(16).eval()
    accelerate(model)
    x = torch.randn(2, 16, 5, 5)
    assert restore(model).changed
    reached = _functions(model(x))
    assert not any("chattn" in name or "Fused" in name for name in reached)
    assert sum("Convolution" in name for name in reached) == 3
    with torch.no_grad():
        model.fc1.weight = nn.Parameter(model.fc1.weight[::2])
        model.fc1.bias = nn.Parameter(model.fc1.bias[::2])
        model.fc2.weight = nn.Parameter(model.fc2.weight[:, ::2])
    model.fc1.out_channels = model.fc2.in_channels = model.fc1.out_channels // 2
    expected = model(x)
    assert accelerate(model).changed
    assert_same(model(x).detach(), expected.detach())


def _functions(y: torch.Tensor) -> list[str]:
    found, todo = {}, [y.grad_fn]
    while todo:
        function = todo.pop()
        if function is not None and id(function) not in found:
            found[id(function)] = function
            todo += [f for f, _ in function.next_functions]
    return [type(f).__name__ for f in found.values()]


@feature(
    SECTION,
    "layers in the place of others (LoRA, quantised layers)",
    "plain",
    "a block whose layers are of other classes calls them",
)
def test_replaced_layers() -> None:
    model = timm.layers.SEModule(16)
    accelerate(model)
    model.fc1 = nn.Sequential(model.fc1, nn.Tanh())
    x = torch.randn(2, 16, 5, 5)
    s = model.fc2(model.act(model.fc1(x.mean((2, 3), keepdim=True))))
    assert_same(model(x).detach(), (x * s.sigmoid()).detach())
    assert explain(model, x).path == "eager"  # type: ignore[union-attr]


@feature(
    SECTION,
    "`timm.utils.reparameterize_model`",
    "yes",
    "no method of a block has a name that libraries call by convention",
)
def test_reparameterize() -> None:
    fast, plain = (m.eval() for m in pair())
    again = timm.utils.reparameterize_model(fast)
    assert_same(again(images()).detach(), plain(images()).detach())


@feature(
    SECTION,
    "patched classes (`EcaModule.forward = ...`)",
    "plain",
    "what is patched runs, before and after `accelerate`; that goes for classes of layers inside, "
    "too, but for torch's",
)
def test_patched_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = timm.layers.EcaModule(16), torch.randn(2, 16, 5, 5)
    accelerate(module)
    gated = timm.layers.SEModule(16, gate_layer=timm.layers.activations.HardSigmoid)
    accelerate(gated)
    gated(x)
    monkeypatch.setattr(timm.layers.EcaModule, "forward", lambda self, x: x + 1)
    monkeypatch.setattr(type(gated.gate), "forward", lambda self, s: 0 * s + 2)
    assert torch.equal(module(x), x + 1) and torch.equal(gated(x), 2 * x)


@feature(
    SECTION,
    "code that is reloaded in place (IPython's autoreload)",
    "plain",
    "runs behind `accelerate`, which leaves such a class; what had been reloaded before the first "
    "block of its class was seen, passes for the class's own",
)
def test_reloaded_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = timm.layers.EcaModule(16), torch.randn(2, 16, 5, 5)
    accelerate(module)
    code = (lambda self, x: x + 1).__code__
    monkeypatch.setattr(timm.layers.EcaModule.forward, "__code__", code)
    assert torch.equal(module(x), x + 1)
    assert not accelerate(timm.layers.EcaModule(16)).changed


@feature(
    SECTION,
    "patched layers of torch (`nn.Conv2d.forward = ...`)",
    "no",
    "a fused block reads its layers' weights and calls none of them; a block with a hook on a "
    "layer, or a layer of your own subclass of these, calls them all",
)
def test_patched_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = timm.layers.SEModule(16)
    x = torch.randn(2, 16, 5, 5)
    expected = module(x)
    accelerate(module)
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: 2 * forward(self, x))
    torch.testing.assert_close(module(x), expected)
    module.fc1 = type("Twice", (nn.Conv2d,), {})(16, 8, 1)
    restored = restore(copy.deepcopy(module)).model
    torch.testing.assert_close(module(x), restored(x))


@feature(
    SECTION,
    "hooks of a layer",
    "plain",
    "a block with hooks on layers inside calls them; SelectiveKernel and SplitAttn stay fused",
)
def test_hooks_of_a_layer() -> None:
    module = timm.layers.SEModule(16)
    accelerate(module)
    seen: list[Any] = []
    module.fc1.register_forward_hook(lambda *arguments: seen.append(arguments))
    module(torch.randn(2, 16, 5, 5))
    assert len(seen) == 1


@feature(
    SECTION,
    "hooks of all modules (`register_module_forward_hook`)",
    "no",
    "they see the block, and not the layers that it reads without calling (fc1, act, gate): "
    "`restore(model)` for tools that watch every layer",
)
def test_hooks_of_all_modules() -> None:
    module, x, seen = timm.layers.SEModule(16), torch.randn(2, 16, 5, 5), []
    accelerate(module)
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        module(x)
        assert not FUSED or seen == [module]
        restore(module)
        module(x)
        assert module.fc1 in seen and module.gate in seen
    finally:
        handle.remove()
