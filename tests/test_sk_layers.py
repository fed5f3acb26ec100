"""Layers of a selective kernel's network: their types, who calls them, and one map of slices."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import functional, ops
from chattn_cuda.modules import SelectiveKernelAttn
from tests import cases
from tests.compare import assert_close
from tests.plain_sk import (
    F64,
    NORMS,
    C,
    D,
    Plain,
    is_one_node,
    loss_of,
    maps,
    require_like_plain,
    same,
)

on_fused = pytest.mark.parametrize("backend", cases.fused_backends())
on_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def _available(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames:
        cases.require(request.getfixturevalue("backend"))


# ---- types
@on_fused
@on_modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_backward_under_autocast(dtype: torch.dtype, training: bool, backend: str) -> None:
    """Autocast changes neither direction: bit by bit what comes without."""
    device = cases.device_of(backend)

    def run(forward: bool, backward: bool) -> tuple[Tensor, ...]:
        module = Plain(2, NORMS["plain"]).to(device, dtype).train(training)
        u = maps(dtype=dtype, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=forward):
            y, gate = module.fused(*u, backend=backend)
            assert is_one_node(y)
            loss = loss_of(y, gate)
        with torch.autocast(device, torch.bfloat16, enabled=backward):
            return y, gate, *torch.autograd.grad(loss, [*u, *module.parameters()])

    expected = run(False, False)
    for how in ((True, False), (True, True), (False, True)):
        for one, two in zip(run(*how), expected, strict=True):
            assert one.dtype == two.dtype == dtype
            assert torch.equal(one, two)


@on_fused
@pytest.mark.parametrize("maps_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_weights(maps_dtype: torch.dtype, dtype: torch.dtype, backend: str) -> None:
    """The numbers between are accumulators, and a gradient has its tensor's type."""
    device = cases.device_of(backend)
    rounded = Plain(3).to(dtype)
    u = maps(3, dtype=maps_dtype)

    def results(outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
        grads = torch.autograd.grad(loss_of(*outputs), leaves)
        return [*outputs, *grads]

    def eager(kind: torch.dtype) -> list[Tensor]:
        module = copy.deepcopy(rounded).to(kind)
        v = [t.detach().to(kind).requires_grad_() for t in u]
        return results(module(*v), [*v, *module.parameters()])

    exact = eager(F64)
    # The yardstick is eager in float32 where that is what the maps have.
    yardstick = eager(torch.float32 if maps_dtype == torch.float32 else maps_dtype)
    module = copy.deepcopy(rounded).to(device)
    v = [t.detach().to(device).requires_grad_() for t in u]
    y, gate = module.fused(*v, backend=backend)
    assert is_one_node(y)
    actual = results((y, gate), [*v, *module.parameters()])
    kinds = [maps_dtype, torch.float32, *[maps_dtype] * 3, *[dtype] * 4]
    names = ["y", "gate", "du0", "du1", "du2", *(f"d{k}" for k, _ in module.named_parameters())]
    for name, a, b, c, kind in zip(names, actual, exact, yardstick, kinds, strict=True):
        assert_close(name, a, b, c, dtype=kind)


# ---- slices of one map
@on_modes
@pytest.mark.parametrize("radix", [2, 3, 4])
@pytest.mark.parametrize("channels", [8, 7])  # slices on 16-byte boundaries, and not
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_split_attention(radix: int, channels: int, layout: str, training: bool) -> None:
    # Few samples may have a variance near zero, whose inverse makes noise of what is exactly zero.
    torch.manual_seed(0)
    ours: Any = chattn_cuda.SplitAttn(12, channels, radix=radix, norm_layer=nn.BatchNorm2d).double()
    plain = copy.deepcopy(ours.train(training))
    x = cases.LAYOUTS[layout](torch.randn(3, 12, 5, 5, dtype=F64))
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(one), plain.eager_forward(two)
    assert is_one_node(y)
    same(y, expected)
    y.sin().sum().backward()
    expected.sin().sum().backward()
    for a, b in zip((one, *ours.parameters()), (two, *plain.parameters()), strict=True):
        same(a.grad, b.grad)
    same(dict(ours.named_buffers()), dict(plain.named_buffers()))


@on_fused
@on_modes
@pytest.mark.parametrize("groups", [2, 8])  # the last: a channel each
def test_split_attention_of_groups(groups: int, training: bool, backend: str) -> None:
    """Their layers are products per group, of numbers."""
    torch.manual_seed(0)
    ours: Any = chattn_cuda.SplitAttn(
        16, 8, groups=groups, rd_channels=8, norm_layer=nn.BatchNorm2d, backend=backend
    )
    device = cases.device_of(backend)
    plain = copy.deepcopy(ours.to(device).double().train(training))
    x = torch.randn(3, 16, 5, 5, dtype=F64, device=device)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(one), plain.eager_forward(two)
    assert is_one_node(y)
    same(y, expected)
    for a, b in ((one, ours), (two, plain)):
        out = b(a) if b is ours else b.eager_forward(a)
        (slope,) = torch.autograd.grad(out.sin().sum(), a, create_graph=True)
        (slope.square().sum() + out.cos().sum()).backward()
    same(one.grad, two.grad)
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if training and name == "fc1.bias":  # 0 in front of a batch norm; both are rounding errors
            assert a.grad.abs().max() <= b.grad.abs().max() + 1e-12
        else:
            same(a.grad, b.grad)
    same(dict(ours.named_buffers()), dict(plain.named_buffers()))
    ours.eval()
    plain.eval()
    with torch.no_grad():
        same(ours(x), plain.eager_forward(x))
        assert ours(x[:0]).shape == (0, 8, 5, 5)
        same(torch.func.vmap(ours)(x[None])[0], plain.eager_forward(x))


# ---- layers that are called
class OwnNorm(nn.BatchNorm2d):
    """Twice as large."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Low(nn.Module):
    """A weight and a product of two narrow ones (Hu et al., arXiv 2106.09685)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.ones(1, weight.shape[1], dtype=weight.dtype))
        self.up = nn.Parameter(torch.ones(weight.shape[0], 1, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down)[:, :, None, None]


def adapt(module: Plain, name: str) -> None:
    layer = getattr(module, name)
    nn.utils.parametrize.register_parametrization(layer, "weight", Low(layer.weight))


def scale(module: Plain, name: str) -> None:
    layer = getattr(module, name)
    layer.forward = types.MethodType(lambda self, x: 3 * type(self).forward(self, x), layer)


LAYERS = ("fc_reduce", "bn", "act", "fc_select")
CALLED: dict[str, Callable[[Plain], Any]] = {
    **{
        f"hook-{name}": lambda p, name=name: getattr(p, name).register_forward_hook(
            lambda module, args, result: result + 0.25
        )
        for name in LAYERS
    },
    **{f"forward-{name}": lambda p, name=name: scale(p, name) for name in LAYERS},
    **{f"lora-{name}": lambda p, name=name: adapt(p, name) for name in ("fc_reduce", "fc_select")},
    "own-norm": lambda p: setattr(p, "bn", OwnNorm(D).double()),
    "group-norm": lambda p: setattr(p, "bn", nn.GroupNorm(1, D).double()),
    "grouped": lambda p: (
        setattr(p, "fc_reduce", nn.Conv2d(C, D - D % 2, 1, groups=2).double())
        or setattr(p, "bn", nn.BatchNorm2d(D - D % 2).double())
        or setattr(p, "fc_select", nn.Conv2d(D - D % 2, 2 * C, 1).double())
    ),
    "sequence": lambda p: setattr(p, "fc_reduce", nn.Sequential(p.fc_reduce)),
    "no-momentum": lambda p: setattr(p.bn, "momentum", None),
    "silu": lambda p: setattr(p, "act", nn.SiLU()),
    "relu6": lambda p: setattr(p, "act", nn.ReLU6()),
}


@on_modes
@pytest.mark.parametrize("change", CALLED)
def test_other_layers_are_called(change: str, training: bool) -> None:
    plain = Plain(2, NORMS["plain"]).train(training)
    CALLED[change](plain)
    plain.train(training)
    u = maps()
    assert not isinstance(plain.network(u[0]), ops.Network)
    require_like_plain(plain, "cpu", u, one_node=False)


@pytest.mark.parametrize("change", ["hook-bn", "forward-bn"])
def test_an_identity_that_does_more_is_called(change: str) -> None:
    plain = Plain(2, NORMS["plain"])
    plain.bn = nn.Identity()
    CALLED[change](plain)
    u = maps()
    assert not isinstance(plain.network(u[0]), ops.Network)
    require_like_plain(plain, "cpu", u, one_node=False)


@on_modes
def test_a_norm_of_another_type_is_called_in_its_own(training: bool) -> None:
    plain, u = Plain(2, NORMS["plain"]).train(training), maps()
    ours = copy.deepcopy(plain)
    ours.bn.float()
    assert not isinstance(ours.network(u[0]), ops.Network)
    y, gate = ours.fused(*u, backend="cpu")
    expected = plain(*u)
    torch.testing.assert_close((y, gate), expected, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(loss_of(*o), u) for o in ((y, gate), expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.bn.running_var.double(), plain.bn.running_var)


def test_one_sample_in_training() -> None:
    (u, v) = maps(n=1)
    plain = Plain(2, NORMS["plain"])
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(ValueError, match="bn cannot normalise with the statistics of one sample"):
        plain.fused(u, v, backend="cpu")
    same(plain.state_dict(), before)
    require_like_plain(plain.eval(), "cpu", [u, v])


def test_empty_batch() -> None:
    require_like_plain(Plain(2, NORMS["plain"]).eval(), "cpu", maps(n=0), one_node=False)


@on_modes
def test_compile(training: bool) -> None:
    plain = Plain(2, NORMS["plain"]).train(training)
    ours = copy.deepcopy(plain)
    torch._dynamo.reset()
    compiled = torch.compile(ours.fused, fullgraph=True, backend="aot_eager")
    u = maps()
    outputs, expected = compiled(*u, backend="cpu"), plain(*u)
    same(outputs, expected)
    grads = [
        torch.autograd.grad(loss_of(*o), [*u, *module.parameters()])
        for o, module in ((outputs, ours), (expected, plain))
    ]
    same(grads[0], grads[1])
    same(dict(ours.named_buffers()), dict(plain.named_buffers()))


def test_function_is_one_node() -> None:
    """With an activation that has a formula, and not under a norm or another activation."""
    u, w1, w2 = maps(), torch.randn(D, C, dtype=F64), torch.randn(2 * C, D, dtype=F64)

    def call(**options: Any) -> Tensor:
        return functional.selective_kernel(u, w1, None, w2, None, backend="cpu", **options)

    assert is_one_node(call()) and is_one_node(call(act="identity"))
    assert is_one_node(call(act=F.relu)) and is_one_node(call(act=nn.ReLU))
    assert not is_one_node(call(act="silu")) and not is_one_node(call(norm=lambda h: h))


@pytest.mark.parametrize("change", ["sequence", "grouped"])
def test_fuse_takes_replaced_layers(change: str) -> None:
    """Which need not tell their channels."""
    plain = Plain(2, NORMS["plain"])
    CALLED[change](plain)
    module = SelectiveKernelAttn(C, 2, D, bias=True).double()
    for name in LAYERS:
        setattr(module, name, getattr(plain, name))
    u = maps()
    expected, gate = plain.eval()(*u)
    same(module.eval().weigh(u), expected)
    same(module(torch.stack(u, 1)).flatten(2), gate)


def test_layers_that_do_not_fit_are_an_error() -> None:
    """Though they have as many numbers."""
    module = SelectiveKernelAttn(16, 2, 16, norm_layer=None)
    module.fc_select = nn.Conv2d(32, 16, 1, bias=False)
    with pytest.raises(RuntimeError):
        module.weigh([torch.randn(2, 16, 3, 3) for _ in range(2)])


def test_a_norm_that_torch_refuses() -> None:
    plain, u = Plain(2, lambda: nn.BatchNorm2d(D, eps=0.0)), maps()
    outcomes = []
    for call in (plain, lambda *v: plain.fused(*v, backend="cpu")):
        try:
            call(*u)
            outcomes.append("accepted")
        except (RuntimeError, ValueError) as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
