"""Tails under torch.compile: one operator each, in one graph, with the numbers of the layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import backends, compiled
from chattn_cuda.modules import deferred
from chattn_cuda.ops import tail
from chattn_cuda.ops.calls import operator_of
from tests import cases
from tests.test_compile_rule import bytes_moved
from tests.test_operator_gradients import samples
from tests.test_tail_operators import make
from tests.test_tails import FUSED, _maps, _pair, _step

timm = pytest.importorskip("timm", reason="timm is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

pytestmark = pytest.mark.skipif(not FUSED, reason="no fused backend for the CPU")

#: With the tails of each, by their gates.
BLOCKS = {
    "bottleneck": ["", "", ""],
    "bottleneck-eca": ["", "", "eca"],
    "bottleneck-ese": ["", "", "se"],
    "bottleneck-down-drop": ["", "", "", "se"],
    "inverted": ["", "", ""],
    "inverted-se": ["", "se", ""],
    "regnety": ["", "se", ""],
    "norm-act": [""],
    "tv-bottleneck": ["", "", ""],
    "tv-efficientnet": ["", "se", ""],
}


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """No map is too small."""
    monkeypatch.setattr(deferred, "SMALLEST", {})
    torch._dynamo.reset()


class Compiled:
    """A module under torch.compile, with the graphs that were made of it."""

    def __init__(self, module: nn.Module, backend: str = "aot_eager", dynamic: Any = None) -> None:
        self.graphs: list[Any] = []
        lower = torch._dynamo.lookup_backend(backend)

        def record(graph: Any, inputs: Any) -> Any:
            self.graphs.append(graph.graph)
            return lower(graph, inputs)

        self.call = torch.compile(module, backend=record, fullgraph=True, dynamic=dynamic)

    def __call__(self, x: Tensor) -> Any:
        return self.call(x)

    @property
    def tails(self) -> list[str]:
        """The gates of the tails in the last graph."""
        names = [str(node.target) for node in self.graphs[-1].nodes]
        found = [n.partition(".")[2] for n in names if n.startswith("chattn_cuda.tail")]
        return [n.removeprefix("tail_").removesuffix("forward.default").rstrip("_") for n in found]


@pytest.mark.parametrize("name", BLOCKS)
def test_same_numbers_from_one_graph(name: str) -> None:
    """Outputs, gradients, running statistics; the second call makes no graph."""
    module, fused = _pair(name)
    for mode in (True, False):
        module.train(mode)
        fused.train(mode)
        call, x = Compiled(fused), _maps()
        for _ in range(2):
            found, expected = _step(fused, x, call), _step(module, x)
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
        assert len(call.graphs) == 1 and call.tails == BLOCKS[name]


@pytest.mark.parametrize("channels_last", [False, True])
@torch._inductor.config.patch(force_disable_caches=True)
def test_same_numbers_by_inductor(channels_last: bool) -> None:
    """Which has layouts of its own, and finds them when shapes are known."""
    module, fused = _pair("bottleneck-se")
    x, call = _maps(channels_last), Compiled(fused, "inductor")
    found, expected = _step(fused, x, call), _step(module, x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    chattn_cuda.accelerate(fused, fuse="tail", backend="cpu")
    call = Compiled(fused.eval(), "inductor")
    with torch.no_grad():
        torch.testing.assert_close(call(x), module.eval()(x))
    assert call.tails == ["", "", "se"]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("momentum", "track"), [(None, True), (0.3, True), (0.3, False)])
def test_every_kind_of_norm(momentum: float | None, track: bool, affine: bool) -> None:
    """As torch.nn.BatchNorm2d has them."""

    def norm(channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, 1e-3, momentum, affine, track)

    module = torchvision.models.resnet.BasicBlock(32, 32, norm_layer=norm).double()
    fused = copy.deepcopy(module)
    chattn_cuda.accelerate(fused, fuse="tail")
    call, x = Compiled(fused), _maps()
    for _ in range(2):
        found, expected = _step(fused, x, call), _step(module, x)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert len(call.graphs) == 1 and call.tails == ["", ""]


def test_batches_of_any_size() -> None:
    """One graph has them all."""
    module, fused = _pair("inverted-se")
    call = Compiled(fused, dynamic=True)
    made = []
    for n in (3, 5, 2):
        x = torch.randn(n, 32, 7, 6, dtype=torch.float64)
        torch.testing.assert_close(_step(fused, x, call), _step(module, x), rtol=1e-7, atol=1e-7)
        made.append(len(call.graphs))  # the first call starts again, for the sake of its numbers
    assert made[0] == made[2] and call.tails == ["", "se", ""]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_autocast(frozen: bool, dtype: torch.dtype) -> None:
    """Tails as without torch.compile; where the map has another type as with fuse="block"."""
    plain, fused = _pair("bottleneck-se")
    chattn_cuda.accelerate(plain)
    call = Compiled(fused)
    tails = dtype == torch.bfloat16
    expected = (fused, fused) if tails else (plain, Compiled(plain))
    x, found = _maps().to(dtype), []
    for module in (plain, fused):
        for norm in module.float().train().modules():
            if frozen and isinstance(norm, nn.BatchNorm2d):
                norm.eval().requires_grad_(False)
    before = copy.deepcopy(plain.state_dict())
    for module, run in (expected, (fused, call)):
        module.load_state_dict(before)
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = run(leaf)
        y.float().square().sum().backward()
        grads = [p.grad for p in module.parameters()]
        found.append((y, leaf.grad, grads, copy.deepcopy(module.state_dict())))
    torch.testing.assert_close(*found, rtol=0.1, atol=0.1)
    # Of another type, x += residual would be another sum than x + residual.
    assert call.tails == (["", "", "se"] if tails else [])


def test_layers_with_hooks_run() -> None:
    """By themselves; the others are as before."""
    module, fused = _pair("bottleneck-se")
    for m in (module, fused):
        m.bn3.register_forward_hook(lambda m, args, y: 2 * y)
    call, x = Compiled(fused), _maps()
    found, expected = _step(fused, x, call), _step(module, x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    assert call.tails == ["", ""]


def test_a_model_trains() -> None:
    """Two steps of a small network."""
    torch.manual_seed(0)
    bottleneck = timm.models.resnet.Bottleneck
    module = timm.models.resnet.ResNet(
        bottleneck, (1, 1, 1, 1), num_classes=5, block_args={"attn_layer": "se"}
    ).double()
    fused = copy.deepcopy(module)
    chattn_cuda.accelerate(fused, fuse="tail")
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    call = Compiled(fused)
    for m, run in ((module, module), (fused, call)):
        optimizer = torch.optim.SGD(m.parameters(), 0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            run(x).sin().sum().backward()
            optimizer.step()
    assert len(call.graphs) == 1 and call.tails.count("se") == 4
    torch.testing.assert_close(fused.state_dict(), module.state_dict(), rtol=1e-6, atol=1e-6)


# ---- the rule
def test_without_gradients_inductor_gets_what_it_fuses() -> None:
    """By the rule; a named backend insists."""
    module, fused = _pair("inverted-se")
    x = _maps()
    for rule, tails in ((None, ["se"]), ("why", [])):
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setitem(compiled.RULE, ("cpu", False), "why")
            patch.setitem(compiled.RULE_OF_TAILS, ("cpu", False), rule)
            call = Compiled(fused.eval())
            torch.testing.assert_close(call(x), module.eval()(x))
            assert call.tails == tails
            text = str(chattn_cuda.explain(fused, x))
            assert "a tail without a gate is the formula in PyTorch: why" in text
            assert ("a tail with a gate is the operator" in text) == (rule is None)
    chattn_cuda.accelerate(fused, fuse="tail", backend="cpu")
    call = Compiled(fused.eval())
    with torch.no_grad():
        call(x)
    assert call.tails == BLOCKS["inverted-se"]


@pytest.mark.parametrize("name", ["bottleneck-se", "inverted-se"])
def test_a_compiled_tail_moves_fewer_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Inductor's count, in inference: 5 and 4; 3 and 2, second reads not counted."""
    module, fused = (m.float().eval() for m in _pair(name))
    x = torch.randn(2, 32, 24, 25).contiguous(memory_format=torch.channels_last)
    monkeypatch.setitem(compiled.RULE_OF_TAILS, ("cpu", False), None)
    moved = [bytes_moved(m, x) for m in (module, fused)]
    assert moved[0] - moved[1] > 1.9 * x.nbytes


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_train(strict: bool) -> None:
    """They are of the layers."""
    module, fused = _pair("bottleneck-se")
    x = _maps()
    program = torch.export.export(fused, (x,), strict=strict).module()
    assert "tail" not in str(program.graph)
    found, expected = _step(program, x), _step(module, x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


# ---- the operators
@pytest.mark.parametrize("name", tail.WHOLE)
def test_opcheck_of_the_whole_operators(name: str) -> None:
    """Schemas, shapes, gradients, and what torch.compile makes of them."""
    operator, args = operator_of("chattn_cuda", name), samples(torch.ops.chattn_cuda)[name]
    checks: tuple[str, ...] = ("test_schema", "test_faketensor")
    if name.endswith("forward"):
        checks += "test_autograd_registration", "test_aot_dispatch_dynamic"
        args = tuple(a.requires_grad_() if isinstance(a, Tensor) else a for a in args)
    torch.library.opcheck(operator, args, test_utils=checks)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("of_batch", [False, True])
def test_opcheck_with_relu_and_factors(of_batch: bool, layout: str) -> None:
    """What the samples above lack."""
    whole, tensors = make(of_batch=of_batch)
    if layout == "nhwc":
        for i in (0, 1):
            last = tensors[i].detach().contiguous(memory_format=torch.channels_last)
            tensors[i] = last.requires_grad_()
    factors = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    norm = whole.norm
    args = (*tensors, norm.mean, norm.var, factors, norm.eps, *whole.constants)
    torch.library.opcheck(operator_of("chattn_cuda", whole.operator("forward")), args)


def test_gradients_that_nobody_needs_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward operator is told."""
    wanted: list[Any] = []
    gradients = tail.function.gradients

    def record(namespace: str, whole: Any, needs: Any, *args: Any) -> Any:
        if type(args[0]) is Tensor:  # not where shapes are found
            wanted.append(list(needs))
        return gradients(namespace, whole, needs, *args)

    monkeypatch.setattr(tail.function, "gradients", record)
    _, fused = _pair("bottleneck-se")
    fused.requires_grad_(False)
    x = _maps().requires_grad_()
    Compiled(fused)(x).sum().backward()
    assert wanted == [[True, True, *[False] * 6], *[[True, *[False] * 3]] * 2]


@pytest.mark.parametrize("backend", cases.fused_backends())
def test_every_backend_has_them(backend: str) -> None:
    """Of the same schemas, made of its own operators."""
    cases.require(backend)
    namespace = str(backends.get(backend).namespace)
    whole, tensors = make()
    tensors = [t.detach().to(cases.device_of(backend)).requires_grad_() for t in tensors]
    args = (*tensors, None, None, None, whole.norm.eps, *whole.constants)
    y = operator_of(namespace, whole.operator("forward"))(*args)[0]
    expected = whole.formula(None, None, *tensors)[0]
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.sin().sum(), tensors)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sin().sum(), tensors))


@pytest.mark.parametrize("act", ["relu", "relu6", "silu"])
def test_second_derivatives_of_the_whole_operators(act: str) -> None:
    """By the formulas, with a residual in front of each kind of activation."""
    cases.require("cpu")
    whole, tensors = make(act=act)
    operator = operator_of("chattn_cuda", whole.operator("forward"))

    def call(*values: Tensor) -> Tensor:
        args = (*values, None, None, None, whole.norm.eps, *whole.constants)
        return operator(*args)[0]  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)
