"""What may be done to a module, the package's own or an accelerated one: every block."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import backends

timm = pytest.importorskip("timm", reason="timm is not installed")
FUSED = backends.select("auto", "cpu") != "reference"


@dataclass(frozen=True)
class Block:
    """A module of 24 channels and its peer, a submodule of both, and the operators' prefix."""

    name: str
    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    submodule: str
    operator: str


BLOCKS = (
    Block(
        "SqueezeExcite",
        functools.partial(chattn_cuda.SqueezeExcite, 24, rd_channels=6),
        functools.partial(timm.layers.SEModule, 24, rd_channels=6),
        "fc1",
        "se",
    ),
    Block(
        "EfficientChannelAttention",
        functools.partial(chattn_cuda.EfficientChannelAttention, 24),
        functools.partial(timm.layers.EcaModule, 24),
        "conv",
        "eca",
    ),
    Block(
        "EfficientChannelAttention",
        functools.partial(chattn_cuda.CircularEfficientChannelAttention, 24),
        functools.partial(timm.layers.CecaModule, 24),
        "conv",
        "eca",
    ),
)


def maps() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 24, 5, 7, generator=generator) + torch.randn(
        1, 24, 1, 1, generator=generator
    )


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=BLOCKS, ids=["se", "eca", "ceca"])
def block(request: pytest.FixtureRequest) -> Block:
    return request.param


@pytest.fixture(params=["own", "accelerated"])
def module(request: pytest.FixtureRequest, block: Block) -> nn.Module:
    torch.manual_seed(0)
    if request.param == "own":
        return block.ours()
    return chattn_cuda.accelerate(block.theirs()).model


@pytest.fixture
def expected(module: nn.Module, block: Block) -> Tensor:
    plain = block.theirs()
    plain.load_state_dict(module.state_dict())
    return plain(maps()).detach()


def test_fx(module: nn.Module, expected: Tensor, block: Block) -> None:
    traced = torch.fx.symbolic_trace(module)
    assert_same(traced(maps()).detach(), expected)
    assert block.submodule in {node.target for node in traced.graph.nodes}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_script(module: nn.Module, expected: Tensor) -> None:
    scripted = torch.jit.script(module)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    assert_same(torch.jit.load(buffer)(maps()).detach(), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_trace(module: nn.Module, expected: Tensor) -> None:
    traced = torch.jit.trace(module, maps())
    assert "chattn_cuda::" not in str(traced.inlined_graph)
    assert_same(traced(maps()).detach(), expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_export(
    module: nn.Module, expected: Tensor, strict: bool, block: Block, backend: str
) -> None:
    """Plain operations, which every reader of programs knows; the operator where it is named."""
    if backend != "auto" and not FUSED:
        pytest.skip("the native module was not built")
    module.backend = backend
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(module, (maps(),), dynamic_shapes={"x": sizes}, strict=strict)
    assert_same(program.module()(maps()).detach(), expected)
    assert program.module()(torch.randn(5, 24, 3, 3)).shape == (5, 24, 3, 3)
    graphs = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    called = [t for g in graphs for t in (str(n.target) for n in g.graph.nodes) if "chattn" in t]
    named = [f"chattn_cuda.{block.operator}_forward.default"]
    assert called == ([] if backend == "auto" else named)


def test_onnx_export_sees_plain_operations(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(module, (maps(),))
    assert not any("chattn" in str(node.target) for node in program.graph.nodes)


def test_compile(module: nn.Module, expected: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            y = compiled(maps())
            y.sum().backward()
    assert_same(y.detach(), expected)


def test_deepcopy_and_pickle(module: nn.Module, expected: Tensor) -> None:
    module.backend = "reference"
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = (
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    )
    for other in copies:
        assert type(other) is type(module)
        assert other.backend == "reference"
        assert list(other.state_dict()) == list(module.state_dict())
        assert_same(other(maps()).detach(), expected)


def test_state_dict_in_and_out(module: nn.Module, expected: Tensor, block: Block) -> None:
    other = block.theirs()
    other.load_state_dict(module.state_dict())
    module.load_state_dict(other.state_dict())
    assert_same(module(maps()).detach(), expected)


def test_prints(module: nn.Module, block: Block) -> None:
    assert block.submodule in repr(module)
    assert block.name in str(chattn_cuda.explain(module, maps()))


def test_functional_call_and_func_grad(module: nn.Module) -> None:
    parameters = {k: p.detach() for k, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, parameters, (maps(),)).sin().sum()

    grads = torch.func.grad(loss)(parameters)
    module(maps()).sin().sum().backward()
    for name, p in module.named_parameters():
        assert_same(grads[name], p.grad)


@pytest.mark.parametrize(
    "make",
    [
        *(block.ours for block in BLOCKS),
        lambda: chattn_cuda.modules.GlobalResponseNorm(24, channels_last=False),
        lambda: chattn_cuda.SelectiveKernel(24, 24),
        lambda: chattn_cuda.SplitAttn(24),
    ],
)
def test_vmap_of_networks_that_change_the_result_in_place(make: Callable[[], nn.Module]) -> None:
    """As `x += shortcut` does."""
    module, x = make().eval(), torch.randn(2, 3, 24, 5, 5)
    y = torch.func.vmap(lambda v: module(v).add_(1))(x)
    torch.testing.assert_close(y[0], module(x[0]) + 1)


def test_move_and_swap_parameters(module: nn.Module, expected: Tensor) -> None:
    """Nothing is cached: new values are seen at once."""
    module(maps())
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0)
    assert_same(module(maps()).detach(), maps() / 2)
    module.double()
    assert module(maps().double()).dtype == torch.float64
