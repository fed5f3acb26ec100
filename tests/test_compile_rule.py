"""chattn_cuda.compiled: what a block hands to torch.compile, and what Inductor makes of it."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import chattn_cuda
from chattn_cuda import _native, compiled, modules, ops
from chattn_cuda.ops import tail
from chattn_cuda.ops.registration import registered_namespaces
from tests import exported

C, RD = 16, 4
FORMULA, OPERATOR = "formula", "operator"

pytestmark = pytest.mark.skipif(_native.why_not_cpu() is not None, reason="needs the CPU kernels")

MODULES: dict[str, Callable[[], nn.Module]] = {
    "se": lambda: modules.SqueezeExcite(C, rd_channels=RD),
    "effective": lambda: modules.EffectiveSqueezeExcite(C),
    "eca": lambda: modules.EfficientChannelAttention(C),
    "circular": lambda: modules.CircularEfficientChannelAttention(C),
    "var1": modules.SEVar1,
}
BRANCHES: dict[str, Callable[[], nn.Module]] = {
    "sk": lambda: modules.SelectiveKernel(C, C),
    "split": lambda: modules.SplitAttn(C),
}
FUNCTIONS = {b.name: (b.function, b.weights(C)) for b in exported.of_one_map()}


@contextlib.contextmanager
def rule(choice: str) -> Iterator[None]:
    """The rule that all devices have one choice."""
    with pytest.MonkeyPatch.context() as patch:
        for key in compiled.RULE:
            patch.setitem(compiled.RULE, key, "why" if choice == FORMULA else None)
        yield


def graph_of(call: Callable[..., Any], *args: Any) -> list[str]:
    """What torch.compile hands to its backend, forward only."""
    found: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.extend(str(n.target) for n in graph.graph.nodes if n.op.startswith("call"))
        return graph

    torch._dynamo.reset()
    torch.compile(call, backend=backend, fullgraph=True)(*args)
    return found


def is_operator(graph: list[str]) -> bool:
    text = " ".join(graph)
    return "chattn_cuda" in text or "autograd_function_apply" in text


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("choice", [FORMULA, OPERATOR])
@pytest.mark.parametrize("name", MODULES)
def test_modules_follow_the_rule(name: str, choice: str, gradients: bool) -> None:
    module = MODULES[name]().train(gradients)
    x = torch.randn(2, C, 5, 7)
    with rule(choice), torch.set_grad_enabled(gradients):
        assert is_operator(graph_of(module, x)) == (choice == OPERATOR)


@pytest.mark.parametrize("name", MODULES)
def test_the_formula_gives_the_same(name: str) -> None:
    module = MODULES[name]()
    for x in (torch.randn(2, C, 5, 7), torch.randn(2, C, 6)):
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        torch._dynamo.reset()
        with rule(FORMULA), torch.no_grad():
            y = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
            expected = module(x)
        assert y.stride() == expected.stride()
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("choice", [FORMULA, OPERATOR])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_follow_the_rule(name: str, choice: str) -> None:
    function, shapes = FUNCTIONS[name]
    x, *weights = (torch.randn(s) for s in ((2, C, 5, 7), *shapes))
    with rule(choice), torch.no_grad():
        graph = graph_of(function, x, *weights)
        assert is_operator(graph) == (choice == OPERATOR)


@pytest.mark.parametrize(
    "name", [name for name in exported.ACCELERATED if not re.search("Kernel|Split", name)]
)
@torch.no_grad()
def test_the_formula_is_the_graph_of_the_original(name: str) -> None:
    """So that a compiled model of such blocks is the same program, accelerated or not."""
    plain = exported.ACCELERATED[name]().eval()
    fast, x = copy.deepcopy(plain), exported.maps().float()
    assert chattn_cuda.accelerate(fast).changed
    with rule(FORMULA):
        assert graph_of(fast, x) == graph_of(plain, x)


@pytest.mark.parametrize("name", BRANCHES)
def test_blocks_of_branches_stay_operators(name: str) -> None:
    module = BRANCHES[name]().eval()
    with rule(FORMULA), torch.no_grad():
        assert is_operator(graph_of(module, torch.randn(2, C, 5, 7)))


def test_convolutions_hand_over_their_own_layout() -> None:
    # Inductor has convolutions work in channels_last; copied back, every map would move once more.
    conv, block = nn.Conv2d(C, 2 * C, 1, bias=False), modules.SelectiveKernelAttn(C)

    def call(x: Tensor) -> Tensor:
        return block.weigh(conv(x).chunk(2, 1))

    x = torch.randn(2, C, 9, 9)
    torch._dynamo.reset()
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        y, (code,) = run_and_get_code(torch.compile(call, fullgraph=True), x)
        torch.testing.assert_close(y, call(x))
    assert re.search(r"sk_squeeze\.default", code)
    assert not re.search(r"(cpp|triton)_\w*sk_squeeze", code), "a kernel that copies its branches"


@pytest.mark.parametrize("name", sorted(registered_namespaces))
def test_operators_take_maps_of_any_layout(name: str) -> None:
    operators = getattr(torch.ops, name)
    for block in (*ops.BLOCKS, "tail", *(f"tail_{gate}" for gate in tail.GATES)):
        for way in ("forward", "backward"):
            assert torch.Tag.flexible_layout in getattr(operators, f"{block}_{way}").default.tags


@pytest.mark.parametrize("name", MODULES)
def test_a_named_backend_insists_on_the_operator(name: str) -> None:
    module = MODULES[name]()
    module.backend = "cpu"
    with rule(FORMULA), torch.no_grad():
        assert is_operator(graph_of(module, torch.randn(2, C, 5, 7)))


@pytest.mark.parametrize("name", MODULES)
def test_nothing_changes_for_export(name: str) -> None:
    def exported() -> list[str]:
        program = torch.export.export(MODULES[name]().eval(), (torch.randn(2, C, 5, 7),))
        return [str(n.target) for n in program.graph.nodes if n.op == "call_function"]

    with rule(FORMULA):
        first = exported()
    with rule(OPERATOR):
        assert exported() == first


def test_without_compilation_nothing_is_asked() -> None:
    with rule(FORMULA):
        assert not compiled.takes_formula("auto", "cpu", ())


@pytest.mark.parametrize(
    ("gradients", "wanted"), [(False, [False, False, True]), (True, [False, True, True])]
)
def test_what_counts_as_gradients(gradients: bool, wanted: list[bool]) -> None:
    plain, weight = torch.ones(1), nn.Parameter(torch.ones(1))
    with torch.set_grad_enabled(True):
        assert compiled.has_gradients([plain, None, weight])
        assert not compiled.has_gradients([plain, None])
    with torch.no_grad():
        assert not compiled.has_gradients([weight])


def test_explanations_state_the_rule() -> None:
    module, x = modules.SqueezeExcite(C), torch.randn(2, C, 5, 7)
    with rule(FORMULA):
        text = str(chattn_cuda.explain(module, x))
        assert "under torch.compile, with gradients, it is the formula in PyTorch: why" in text
    with rule(OPERATOR), torch.no_grad():
        text = str(chattn_cuda.explain(module, x))
        assert "under torch.compile, without gradients, it is the operator" in text
    module.backend = "cpu"
    assert "backend='cpu' insists on the operator" in str(chattn_cuda.explain(module, x))
    function, shapes = FUNCTIONS["se"]
    weights = [torch.randn(s) for s in shapes]
    with rule(FORMULA):
        text = str(chattn_cuda.explain(function, x, *weights))
        assert "without gradients, it is the formula" in text
    module = modules.SelectiveKernel(C, C)
    assert "under torch.compile" not in str(chattn_cuda.explain(module, x))


# ---- what Inductor makes of it ------------------------------------------------------------------
class Tail(nn.Module):
    """The end of a residual block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.bn, self.block = nn.BatchNorm2d(C), block

    def forward(self, u: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.block(self.bn(u)) + residual)


class Counted(Exception):
    """There is code; it need not be compiled."""


def bytes_moved(module: nn.Module, *maps: Tensor) -> int:
    """What Inductor's kernels and the operators that it calls read and write, by its scheduler."""
    from torch._inductor.graph import GraphLowering

    counted: list[int] = []

    def compile_to_module(self: Any) -> Any:
        self.codegen()
        counted.append(self.count_bytes()[0])
        raise Counted

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(GraphLowering, "compile_to_module", compile_to_module)
        with (
            torch._inductor.config.patch(fx_graph_cache=False),
            contextlib.suppress(torch._dynamo.exc.TorchDynamoException),
        ):
            torch.compile(module, fullgraph=True, dynamic=False)(*maps)
    assert len(counted) == 1
    return counted[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("block", ["SEModule", "EcaModule"])
def test_a_compiled_tail_moves_no_more_than_the_original(block: str, layout: Any) -> None:
    layers = pytest.importorskip("timm.layers")
    kind = getattr(layers, block)
    plain = Tail(kind(C)).eval()
    maps = [torch.randn(2, C, 24, 25).contiguous(memory_format=layout) for _ in range(2)]
    accelerated = copy.deepcopy(plain)
    chattn_cuda.accelerate(accelerated)
    with rule(FORMULA):
        original, formula = (bytes_moved(m, *maps) for m in (plain, accelerated))
    assert formula <= original
    with rule(OPERATOR):  # the difference that the rule makes
        assert bytes_moved(accelerated, *maps) > original + 0.9 * maps[0].nbytes
