"""Batch norm and activation of a selective kernel's branches, folded into its passes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from chattn_cuda import accelerate, activations, backends, explain, functional
from chattn_cuda.modules import SelectiveKernel, SelectiveKernelConv, SplitAttn
from chattn_cuda.reference import accumulation_dtype
from tests import cases
from tests.compare import assert_close

timm = pytest.importorskip("timm")

on_fused = pytest.mark.parametrize("backend", cases.fused_backends())
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SHAPES = {
    "tiles": (3, (2, 17, 7, 7)),
    "planes": (2, (1, 9, 23, 24)),
    "parts": (2, (1, 3, 95, 97)),
    "rows": (4, (3, 72, 5, 6)),
    "two of tiles": (2, (2, 17, 7, 7)),
    "two of rows": (2, (3, 72, 5, 6)),
    "one position": (2, (2, 16, 1, 1)),
    "one branch": (1, (2, 6, 4, 4)),
    "empty": (2, (0, 6, 4, 4)),
}


ACTS: dict[str, Any] = {
    **{name: name for name in activations.ACTIVATIONS},
    "leaky_relu of 0.3": nn.LeakyReLU(0.3),
    "elu of 0.4": nn.ELU(0.4),
}


def tensors(m: int, shape: Any, dtype: torch.dtype) -> list[Tensor]:
    """M branches, w_reduce, w_select, scale and shift, rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(0)
    c = shape[1]
    sizes = [*[shape] * m, (5, c), (m * c, 5), (m, c), (m, c)]
    made = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    made[m] /= c**0.5
    return [t.to(dtype) for t in made]


def attend(
    inputs: list[Tensor], dtype: torch.dtype, backend: str, fold: bool, slices: bool = False,
    act: Any = "relu",
) -> Any:  # fmt: skip
    """(y, gate); without ``fold`` the prologue runs before, as a batch norm and an activation.

    Its variance and eps add up to 1 in every type; an eps of 0 is not for every torch.
    """
    *branches, w1, w2, scale, shift = (t.to(dtype) for t in inputs)
    affine = {"prologue": (scale, shift), "prologue_act": act} if fold else {}
    if not fold:
        behind = activations.as_callable(act)
        branches = [
            behind(F.batch_norm(u, torch.zeros_like(a), torch.full_like(a, 0.5), a, b, eps=0.5))
            for u, a, b in zip(branches, scale, shift, strict=True)
        ]
    if slices:
        stacked = torch.cat(branches, 1)
        if branches[0].is_contiguous(memory_format=torch.channels_last):
            stacked = stacked.contiguous(memory_format=torch.channels_last)
        branches = list(stacked.chunk(len(branches), 1))
    return functional.selective_kernel(
        branches, w1, None, w2, None, return_gate=True, backend=backend, **affine
    )


def check(backend: str, layout: str, shape: str, dtype: torch.dtype, act: Any = "relu") -> None:
    """Against float64."""
    cases.require(backend)
    m, size = SHAPES[shape]
    inputs = [
        t.contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t
        for t in tensors(m, size, dtype)
    ]
    exact = attend([t.double() for t in inputs], torch.float64, "reference", False, act=act)
    eager = attend(inputs, dtype, "reference", False, act=act)
    device = cases.device_of(backend)
    actual = attend([t.to(device) for t in inputs], dtype, backend, True, act=act)
    for name, a, b, c in zip(("y", "gate"), actual, exact, eager, strict=True):
        kind = dtype if name == "y" else accumulation_dtype(dtype)
        assert_close(name, a, b, c, dtype=kind)


@on_fused
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
@torch.no_grad()
def test_against_float64(backend: str, layout: str, shape: str, dtype: torch.dtype) -> None:
    check(backend, layout, shape, dtype)


@on_fused
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ["two of tiles", "two of rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("act", ACTS)
@torch.no_grad()
def test_every_activation(
    backend: str, layout: str, shape: str, dtype: torch.dtype, act: str
) -> None:
    check(backend, layout, shape, dtype, ACTS[act])


@torch.no_grad()
def test_an_activation_that_no_kernel_has() -> None:
    cases.require("cpu")
    inputs = tensors(2, (2, 5, 4, 4), torch.float64)
    y, _ = attend(inputs, torch.float64, "cpu", True, act=torch.sin)
    torch.testing.assert_close(
        y, attend(inputs, torch.float64, "reference", False, act=torch.sin)[0]
    )
    *u, w1, w2, scale, shift = inputs
    words = {"backend": "cpu", "prologue": (scale, shift)}
    call = functools.partial(explain, functional.selective_kernel, u, w1, None, w2, None, **words)
    assert "no such activation" in str(call(prologue_act=torch.sin))
    assert "no such activation" not in str(call(prologue_act="silu"))
    with pytest.raises(TypeError, match="prologue_act"):
        call(prologue_act=1)


@on_fused
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_slices_of_one_map(backend: str, layout: str) -> None:
    """The same bits as of three maps."""
    cases.require(backend)
    inputs = [
        t.contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t
        for t in tensors(3, (2, 16, 9, 9), torch.float32)
    ]
    inputs = [t.to(cases.device_of(backend)) for t in inputs]
    one = attend(inputs, torch.float32, backend, True)
    other = attend(inputs, torch.float32, backend, True, slices=True)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@on_fused
@torch.no_grad()
def test_not_a_number_stays_one(backend: str) -> None:
    cases.require(backend)
    inputs = tensors(2, (2, 3, 5, 5), torch.float32)
    inputs[1][1, 2, 3, 4] = torch.nan
    inputs = [t.to(cases.device_of(backend)) for t in inputs]
    y, _ = attend(inputs, torch.float32, backend, True)
    assert y[1, 2, 3, 4].isnan() and y[0].isfinite().all()


@on_fused
@torch.no_grad()
def test_opcheck(backend: str) -> None:
    cases.require(backend)
    operators = getattr(torch.ops, str(backends.get(backend).namespace))
    device = cases.device_of(backend)
    branches = [t.to(device) for t in tensors(2, (2, 6, 3, 5), torch.float32)[:2]]
    prologue, logits = (torch.randn(s, device=device) for s in ((2, 12), (2, 2, 6)))
    torch.library.opcheck(operators.sk_squeeze.default, (branches, prologue))
    torch.library.opcheck(operators.sk_select.default, (branches, logits, prologue))
    torch.library.opcheck(operators.sk_squeeze.default, (branches, prologue, 9, 0.3))
    torch.library.opcheck(operators.sk_select.default, (branches, logits, prologue, 9, 0.3))
    if backend == "triton":
        return  # what it is given is checked before
    for wrong in (prologue[:1], prologue.double()):
        with pytest.raises(RuntimeError, match="prologue"):
            operators.sk_squeeze(branches, wrong)
    with pytest.raises(RuntimeError, match="activation"):
        operators.sk_select(branches, logits, prologue, 13)


@on_fused
def test_gradients_go_through_the_formula(backend: str) -> None:
    cases.require(backend)
    inputs = tensors(2, (2, 5, 4, 4), torch.float64)

    def grads(name: str, fold: bool) -> tuple[Tensor, ...]:
        leaves = [t.to(cases.device_of(name)).requires_grad_() for t in inputs]
        y, _ = attend(leaves, torch.float64, name, fold)
        return torch.autograd.grad(y.sin().sum(), leaves)

    for a, b in zip(grads(backend, True), grads("reference", False), strict=True):
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize(
    ("prologue", "error", "message"),
    [
        (torch.ones(2, 4), TypeError, "pair"),
        ((torch.ones(2, 4), None), TypeError, "prologue's shift must be a tensor"),
        ((torch.ones(2, 4), torch.ones(4)), ValueError, r"must have shape \(2, 4\), got \(4,\)"),
    ],
)
def test_wrong_prologues(prologue: Any, error: type[Exception], message: str) -> None:
    u = [torch.ones(1, 4, 2, 2)] * 2
    weights = (torch.ones(3, 4), None, torch.ones(8, 3), None)
    with pytest.raises(error, match=message):
        functional.selective_kernel(u, *weights, prologue=prologue)


# ---- modules


class Calls(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    def count(self, part: str) -> int:
        return sum(part in name for name in self.names)


def randomised(module: nn.Module) -> nn.Module:
    """With running statistics and weights of its batch norms that are not those of a new one."""
    generator = torch.Generator().manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight, m.bias, m.running_mean):
                t.data = torch.randn(t.shape, generator=generator)
            m.running_var = torch.rand(m.running_var.shape, generator=generator) + 0.5
    return module.eval().double()


def accelerated(module: nn.Module) -> nn.Module:
    accelerate(module, backend="cpu", fuse="block")
    return module


MODULES: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: SelectiveKernel(8, backend="cpu"),
    "paper": lambda: SelectiveKernelConv(8, 3, groups=4, backend="cpu"),
    "timm": lambda: accelerated(timm.layers.SelectiveKernel(8)),
    "split attention": lambda: accelerated(
        timm.layers.SplitAttn(8, norm_layer=nn.BatchNorm2d, radix=2)
    ),
}
on_modules = pytest.mark.parametrize("name", MODULES)


def plain(module: nn.Module, x: Tensor) -> Tensor:
    """The result by the submodules."""
    return module.eager_forward(x)


@on_modules
@torch.no_grad()
def test_modules_leave_norm_and_relu_to_the_passes(name: str) -> None:
    cases.require("cpu")
    module = randomised(MODULES[name]())
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    with Calls() as calls:
        y = module(x)
    torch.testing.assert_close(y, plain(module, x))
    assert calls.count("sk_forward") == 1
    assert calls.count("batch_norm") == 0 and calls.count("relu") == 0


@on_modules
def test_modules_run_their_layers_where_something_depends_on_it(name: str) -> None:
    cases.require("cpu")
    module = randomised(MODULES[name]())
    first = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    relu = next(m for m in module.modules() if isinstance(m, nn.ReLU))
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)

    module(x).sum().backward()  # gradients
    assert first.weight.grad is not None
    for changed in (first, relu):
        seen = []
        handle = changed.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        with torch.no_grad():
            torch.testing.assert_close(module(x), plain(module, x))
        assert len(seen) == 2
        handle.remove()
    other = copy.deepcopy(module).train()  # statistics of the batch
    with torch.no_grad():
        torch.testing.assert_close(module.train()(x), plain(other, x))
        assert torch.equal(first.running_mean, next(
            m for m in other.modules() if isinstance(m, nn.BatchNorm2d)
        ).running_mean)  # fmt: skip


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "silu": nn.SiLU,
    "hard_swish": nn.Hardswish,
    "gelu": nn.GELU,
    "gelu_tanh": functools.partial(nn.GELU, "tanh"),
    "leaky_relu": functools.partial(nn.LeakyReLU, 0.3),
    "identity": nn.Identity,
    "timm": timm.layers.activations.HardSwish,
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_modules_leave_every_activation_to_the_passes(name: str) -> None:
    cases.require("cpu")
    act = LAYERS[name]
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for made in (
        SelectiveKernel(8, act_layer=act, backend="cpu"),
        SplitAttn(8, norm_layer=nn.BatchNorm2d, act_layer=act, backend="cpu"),
    ):
        module = randomised(made)
        for _ in range(2):  # the second time it remembers
            with Calls() as calls:
                y = module(x)
            torch.testing.assert_close(y, plain(module, x))
            assert calls.count("batch_norm") <= 1  # of the hidden values


@torch.no_grad()
def test_three_branches_behind_another_activation() -> None:
    """The kernels have it for two: the layers run."""
    cases.require("cpu")
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for made in (
        SelectiveKernel(8, kernel_size=(3, 5, 7), split_input=False, act_layer="silu",
                        backend="cpu"),
        SplitAttn(8, norm_layer=nn.BatchNorm2d, act_layer="silu", radix=4, backend="cpu"),
    ):  # fmt: skip
        module = randomised(made)
        with Calls() as calls:
            y = module(x)
        torch.testing.assert_close(y, plain(module, x))
        assert calls.count("sk_forward") + calls.count("sk_select") == 1
        assert calls.count("silu") >= 1
    inputs = tensors(3, (2, 5, 4, 4), torch.float64)
    y, _ = attend(inputs, torch.float64, "cpu", True, act="silu")
    torch.testing.assert_close(y, attend(inputs, torch.float64, "reference", False, act="silu")[0])


@torch.no_grad()
def test_a_changed_activation_is_seen() -> None:
    cases.require("cpu")
    module = randomised(SelectiveKernel(8, act_layer=nn.LeakyReLU, backend="cpu"))
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    attn = module.attn.act
    module.attn.act = nn.ReLU()  # a network that is remembered
    before = module(x)
    for path in module.paths:
        path.act.negative_slope = 0.7
    torch.testing.assert_close(module(x), plain(module, x))
    assert not torch.allclose(module(x), before)
    module.paths[0].act = nn.PReLU(dtype=torch.float64)  # which no kernel has
    torch.testing.assert_close(module(x), plain(module, x))
    module.paths[0].act = nn.Tanh()  # another than the other path's
    torch.testing.assert_close(module(x), plain(module, x))
    module.attn.act = attn
    torch.testing.assert_close(module(x), plain(module, x))


@torch.no_grad()
def test_behind_a_norm_comes_anti_aliasing() -> None:
    cases.require("cpu")
    module = randomised(
        accelerated(timm.layers.SelectiveKernel(8, stride=2, aa_layer=timm.layers.BlurPool2d))
    )
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(module(x), plain(module, x))


@on_modules
@torch.no_grad()
def test_compile_without_graph_break(name: str) -> None:
    cases.require("cpu")
    module = randomised(MODULES[name]())
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for n in (2, 3):
        x = torch.randn(n, 8, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), plain(module, x))
