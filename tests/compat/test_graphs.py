"""Tools that make graphs of a model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

import timm  # noqa: E402

from chattn_cuda import accelerate, decompositions, restore  # noqa: E402
from tests.compat.features import feature  # noqa: E402
from tests.compat.models import (  # noqa: E402
    BLOCKS,
    FUSED,
    FUSED_NAME,
    assert_same,
    images,
    operators_in,
    pair,
    step,
)

SECTION = "Compilation, tracing and export"
no_deprecations = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@feature(SECTION, "`torch.compile(fullgraph=True)`, Inductor", "yes", "training and inference")
def test_compile_inductor() -> None:
    fast, plain = pair()
    compiled = torch.compile(fast, fullgraph=True)
    y = compiled(images())
    y.sin().sum().backward()
    expected = step(plain, images())
    assert_same(y.detach(), expected["output"])
    assert_same({k: p.grad for k, p in fast.named_parameters()}, dict(list(expected.items())[1:]))


class Recorder:
    """A compiler that keeps the graphs."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward


@feature(
    SECTION, "`torch.compile(dynamic=True)`", "yes", "one graph for all sizes: no recompilation"
)
def test_compile_dynamic_shapes() -> None:
    fast, plain = pair()
    recorder = Recorder()
    compiled = torch.compile(fast.eval(), fullgraph=True, dynamic=True, backend=recorder)
    plain.eval()
    for n, size in ((2, 12), (3, 9), (5, 16), (4, 7)):
        x = images(n, size)
        assert_same(compiled(x).detach(), plain(x).detach())
    assert len(recorder.graphs) == 1


@feature(
    SECTION, "`torch.compile`, repeated calls, train and eval", "yes", "no recompilation storm"
)
def test_compile_does_not_recompile() -> None:
    fast, _ = pair()
    recorder = Recorder()
    compiled = torch.compile(fast, fullgraph=True, dynamic=False, backend=recorder)
    for _ in range(3):
        for training in (True, False):
            fast.train(training)
            for memory_format in (torch.contiguous_format, torch.channels_last):
                compiled(images().contiguous(memory_format=memory_format))
    assert len(recorder.graphs) <= 4  # train or eval, and two formats
    fast.blocks.requires_grad_(False)
    torch._dynamo.reset()
    recorder.graphs.clear()
    for _ in range(3):
        compiled(images())
    assert len(recorder.graphs) == 1


def exported(backend: str) -> Any:
    """The program, after it was compared with the original."""
    fast, plain = pair(backend=backend)
    fast.blocks[-1].backend = backend
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(fast.eval(), (images(),), dynamic_shapes={"x": sizes})
    plain.eval()
    for x in (images(), images(5, 9)):
        assert_same(step(program.module(), x), step(plain, x))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    assert_same(torch.export.load(buffer).module()(images()).detach(), plain(images()).detach())
    return program


@feature(
    SECTION,
    "`torch.export`",
    "plain",
    "a program must run without this package; dynamic batch and size; it can be trained",
)
def test_export() -> None:
    assert operators_in(exported("auto").graph_module) == 0


@feature(
    SECTION,
    '`torch.export` after `accelerate(model, backend="cpu")` or `"cuda"`',
    "yes",
    "who names a backend keeps the operators, which have their gradients in a program too",
)
def test_export_with_operators() -> None:
    program = exported(FUSED_NAME)
    if FUSED:
        assert operators_in(program.graph_module) == BLOCKS


@feature(
    SECTION,
    "`program.run_decompositions(chattn_cuda.decompositions())`",
    "yes",
    "makes plain operations of the operators in a program, for `torch.onnx.export(program)` and "
    "others; with `torch.export.default_decompositions()`, core ATen alone",
)
def test_decompositions() -> None:
    fast, plain = pair(backend=FUSED_NAME)
    program = torch.export.export(fast.eval(), (images(),))
    table = torch.export.default_decompositions()
    table.update(decompositions())
    program = program.run_decompositions(table)
    assert operators_in(program.graph_module) == 0
    assert_same(program.module()(images()).detach(), plain.eval()(images()).detach())


@feature(
    SECTION,
    "AOTInductor",
    "yes",
    "as exported: where a backend was named, the process that loads the package must have imported "
    "`chattn_cuda`",
)
@no_deprecations
@pytest.mark.parametrize("backend", ["auto", FUSED_NAME])
def test_aot_inductor(backend: str, tmp_path: Path) -> None:
    fast, plain = pair(backend=backend)
    with torch.no_grad():
        program = torch.export.export(fast.eval(), (images(),))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "net.pt2")
        )
        run = torch._inductor.aoti_load_package(path)
        assert_same(run(images()), plain.eval()(images()))


@feature(
    SECTION,
    "ONNX (`torch.onnx.export(dynamo=True)`), run by onnxruntime",
    "plain",
    "a file must not depend on this package: the blocks become standard operators",
)
@no_deprecations
def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    fast, plain = pair()
    program = torch.onnx.export(fast.eval(), (images(),), dynamo=True, verbose=False)
    path = tmp_path / "net.onnx"
    program.save(str(path))
    assert {node.domain for node in program.model.graph} <= {"", "pkg.onnxscript.torch_lib"}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    assert_same(torch.from_numpy(y), plain.eval()(images()).detach())


@feature(SECTION, "`torch.fx.symbolic_trace`", "plain", "shapes are unknown while it traces")
def test_fx() -> None:
    fast, plain = pair()
    traced = torch.fx.symbolic_trace(fast)
    assert operators_in(traced) == 0
    assert_same(step(traced, images())["output"], step(plain, images())["output"])
    names = {n for n, _ in traced.named_parameters()}
    assert names == {n for n, _ in plain.named_parameters()}


@feature(
    SECTION,
    "`torch.jit.script`",
    "plain",
    "a scripted model must load without Python; where the original class cannot be scripted, "
    "neither can the accelerated one",
)
@no_deprecations
def test_script() -> None:
    fast, plain = pair()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(fast.eval()), buffer)
    buffer.seek(0)
    assert_same(torch.jit.load(buffer)(images()).detach(), plain.eval()(images()).detach())


@feature(SECTION, "`torch.jit.trace`", "plain", "as for `torch.jit.script`")
@no_deprecations
def test_trace() -> None:
    fast, plain = pair()
    traced = torch.jit.trace(fast.eval(), images())
    assert "chattn_cuda::" not in str(traced.inlined_graph)
    assert_same(traced(images()).detach(), plain.eval()(images()).detach())


@feature(SECTION, "`torch.func.grad`, `functional_call`", "yes")
def test_func_grad() -> None:
    fast, plain = pair()

    def loss(model: nn.Module) -> Any:
        return lambda p: torch.func.functional_call(model, p, (images(),)).sin().sum()

    grads = [
        torch.func.grad(loss(m))({k: p.detach() for k, p in m.named_parameters()})
        for m in (fast.eval(), plain.eval())
    ]
    assert_same(*grads)


@feature(
    SECTION,
    "`torch.func.vmap`, gradients per sample",
    "plain",
    "all samples at once, where the operators would be called once for each",
)
def test_vmap() -> None:
    fast, plain = pair()

    def per_sample(model: nn.Module) -> dict[str, Tensor]:
        parameters = {k: p.detach() for k, p in model.named_parameters()}

        def loss(p: Any, x: Tensor) -> Tensor:
            return torch.func.functional_call(model, p, (x[None],)).sin().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images(3))

    assert_same(per_sample(fast.eval()), per_sample(plain.eval()))


@feature(
    SECTION,
    "`torch.func.jvp` (forward mode)",
    "plain",
    "the operators have derivatives in reverse mode only",
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_forward_mode() -> None:
    fast, plain = pair()
    x = images()
    results = [torch.func.jvp(m.eval(), (x,), (torch.cos(x),)) for m in (fast, plain)]
    for actual, expected in zip(*results, strict=True):
        assert_same(actual.detach(), expected.detach())


@feature(SECTION, "double backward (`create_graph=True`)", "yes", "from the formulas")
def test_double_backward() -> None:
    fast, plain = pair()

    def penalty(model: nn.Module) -> Tensor:
        x = images().double().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), next(model.parameters()))[0]

    assert_same(penalty(fast.double().eval()), penalty(plain.double().eval()), 1e-9)


@feature(
    SECTION,
    "biases that change between a backward and the backward through it",
    "no",
    "second derivatives read the biases, and say that one was changed; first derivatives do not",
)
def test_changed_bias_in_a_double_backward() -> None:
    module = timm.layers.SEModule(16)
    accelerate(module)
    x = torch.randn(2, 16, 5, 5, requires_grad=True)
    (g,) = torch.autograd.grad(module(x).sin().sum(), x, create_graph=True)
    with torch.no_grad():
        module.fc1.bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation|changed in place"):
        torch.autograd.grad(g.sin().sum(), module.fc2.weight)


@feature(SECTION, "`restore` after any of these", "yes", "the model has its own classes again")
def test_restore() -> None:
    fast, plain = pair()
    torch.fx.symbolic_trace(fast)
    torch.compile(fast, backend="eager")(images())
    restore(fast)
    assert [type(m) for m in fast.modules()] == [type(m) for m in plain.modules()]
