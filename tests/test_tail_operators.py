"""The operators of a tail: what torch is told of them, derivatives of their node, what it keeps."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from chattn_cuda import activations, backends
from chattn_cuda.ops.calls import operator_of
from chattn_cuda.ops.tail import Gate, Norm, Tail, apply_tail, function
from chattn_cuda.ops.tail.together import own_sums
from tests import cases

CODES = {name: a.code for name, a in activations.ACTIVATIONS.items()}
N, C, HW = 2, 4, (3, 3)


def make(
    of_batch: bool = True, gated: bool = True, inner: str = "identity", act: str = "relu",
    residual: bool = True, hidden: str = "silu",
) -> tuple[Tail, list[Any]]:  # fmt: skip
    """A tail in float64, and its tensors."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    norm = Norm(None, None, 1e-3)
    if not of_batch:
        norm = Norm(random(C).detach(), 0.5 + random(C).detach().square(), 1e-3)
    gate = Gate("se", (CODES[hidden], 0.0, CODES["sigmoid"])) if gated else None
    weights = [random(2, C), random(2), random(C, 2), random(C)] if gated else []
    tail = Tail(norm, gate, (CODES[inner], 0.0), (CODES[act], 0.0))
    return tail, [
        random(N, C, *HW),
        random(N, C, *HW) if residual else None,
        random(C),
        random(C),
        *weights,
    ]


CHOICES: dict[str, tuple[Any, ...]] = {
    "of_batch": (True, False),
    "gated": (True, False),
    "inner": ("identity", "silu"),
    "act": ("identity", "relu", "silu"),
    "residual": (True, False),
}
WAYS = [dict(zip(CHOICES, way, strict=True)) for way in itertools.product(*CHOICES.values())]


def name_of(way: dict[str, Any]) -> str:
    return "-".join(k if v is True else str(v) for k, v in way.items() if v is not False)


@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_derivatives_are_the_formulas(way: dict[str, Any]) -> None:
    """First ones by the operators, second ones of them, also where only x asks."""
    cases.require("cpu")
    tail, tensors = make(**way)
    leaves = [t for t in tensors if t is not None]
    for asked in (leaves, leaves[:1]):
        found = []
        for y in (
            apply_tail("chattn_cuda", tail, *tensors)[0],
            *tail.formula(None, None, *tensors),
        ):
            slope = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
            first = torch.autograd.grad((y * slope).sin().sum(), asked, create_graph=True)
            total = sum(g.square().sum() for g in first)
            second = torch.autograd.grad(total, leaves, allow_unused=True)
            found.append((y, first, second))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("act", ["identity", "relu"])
def test_forward_mode_through_a_backward(act: str) -> None:
    """Of a node that was made before, by the formulas."""
    cases.require("cpu")
    tail, tensors = make(act=act, hidden="relu")
    leaves, found = [t for t in tensors if t is not None], []
    for y in apply_tail("chattn_cuda", tail, *tensors)[0], *tail.formula(None, None, *tensors):
        slope = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        with forward_ad.dual_level():
            grads = torch.autograd.grad(y.sin(), leaves, forward_ad.make_dual(slope, slope.exp()))
            found.append([forward_ad.unpack_dual(g).tangent for g in grads])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_statistics_may_change_before_second_derivatives() -> None:
    """Those that the forward took count."""
    cases.require("cpu")
    tail, tensors = make(of_batch=False)
    (dx,) = torch.autograd.grad(
        apply_tail("chattn_cuda", tail, *tensors)[0].sum(), tensors[0], create_graph=True
    )
    expected = torch.autograd.grad(dx.square().sum(), tensors[2], retain_graph=True)
    assert tail.norm.mean is not None
    tail.norm.mean.zero_()
    torch.testing.assert_close(torch.autograd.grad(dx.square().sum(), tensors[2]), expected)


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wide", [True, False])
def test_running_statistics(wide: bool, dtype: torch.dtype, backend: str) -> None:
    """As PyTorch's, of float32 beside 16-bit maps, too, and wherever they lie."""
    cases.require(backend)
    namespace = backends.get(backend).namespace
    assert namespace is not None
    device, c = cases.device_of(backend), 21
    x = (torch.randn(3, c, 5, 7, dtype=torch.float64) * 3 + 100).to(device, dtype)
    kind = torch.promote_types(dtype, torch.float32) if wide else dtype
    flat = torch.rand(2 * c + 1, dtype=torch.float64).to(device, kind)
    expected = [flat[1 : c + 1].double(), flat[c + 1 :].double()]
    running, updates = [flat[1 : c + 1], flat[c + 1 :]], torch.tensor(4, device=device)
    versions = running[0]._version, updates._version
    for step in range(2):
        norm = Norm(None, None, 1e-3, [*running, updates][: 3 - step], 0.25)
        apply_tail(namespace, Tail(norm, None, (0, 0.0), (0, 0.0)), x, None, None, None)
        torch.nn.functional.batch_norm(x.double(), *expected, training=True, momentum=0.25)
    assert int(updates) == 5 and flat[0] < 1
    assert running[0]._version > versions[0] and updates._version > versions[1]
    tolerance = {"rtol": 1.6e-2, "atol": 0} if kind == torch.bfloat16 else {}
    for t, e in zip(running, expected, strict=True):
        torch.testing.assert_close(t, e.to(kind), **tolerance)


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("way", WAYS[::5], ids=name_of)
def test_opcheck(
    way: dict[str, Any], layout: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of a forward and a backward: schema, and what is told of its results."""
    cases.require(backend)
    tail, tensors = make(**way)
    device = cases.device_of(backend)
    made = [t if t is None else t.detach().to(device).requires_grad_() for t in tensors]
    if tail.norm.mean is not None and tail.norm.var is not None:
        tail.norm = Norm(tail.norm.mean.to(device), tail.norm.var.to(device), 1e-3)
    if layout == "nhwc":
        for i in (0, 1):
            if made[i] is not None:
                made[i] = made[i].detach().contiguous(memory_format=torch.channels_last)
                made[i].requires_grad_()
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def call(namespace: str, name: str, *args: Any) -> Any:
        calls.append((name, args))
        return call_eager(namespace, name, *args)

    call_eager = function.call_eager
    monkeypatch.setattr(function, "call_eager", call)
    namespace = backends.get(backend).namespace
    assert namespace is not None
    apply_tail(namespace, tail, *made)[0].sum().backward()
    names = {name for name, _ in calls}
    assert names >= {"tail_squeeze", "tail_apply", "tail_reduce", "tail_gradient"}
    for name, args in calls:
        given = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(operator_of(namespace, name), given, test_utils=checks)


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("inner", ["identity", "silu"])
def test_what_all_positions_lose_may_be_given(inner: str, layout: str, backend: str) -> None:
    """As it follows from the sums: then these, and the norm's gradients, need not be there."""
    cases.require(backend)
    tail, tensors = make(inner=inner)
    fmt = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    device, namespace = cases.device_of(backend), str(backends.get(backend).namespace)
    x, residual, weight, bias = (t.detach().to(device) for t in tensors[:4])
    x, residual = x.contiguous(memory_format=fmt), residual.contiguous(memory_format=fmt)
    numbers, _, means, pooled = function.call_eager(
        namespace, "tail_squeeze", x, weight, bias, None, None, [], 0.0, 1e-3, *tail.inner, True
    )
    given, gate, dpooled = means if means.numel() else None, pooled.sigmoid(), pooled.cos()
    maps = x.cos(), x, residual, None, numbers, gate
    sums, _ = function.call_eager(namespace, "tail_reduce", *maps, *tail.functions, False)
    of_gradient = functools.partial(function.call_eager, namespace, "tail_gradient", *maps)
    whole = of_gradient(sums, given, dpooled, weight, None, *tail.functions, *[True] * 4)
    own = own_sums(tail, x, sums, gate, numbers, means, dpooled)
    torch.testing.assert_close(own[1] * numbers[3], whole[2])
    torch.testing.assert_close(own[0], whole[3])
    lost = torch.stack((own[0], own[1] * numbers[3] ** 2)) * numbers[0] * C / x.numel()
    args = None, None, dpooled, None, lost, *tail.functions
    for of_batch in (False, True):
        found = of_gradient(*args, of_batch, True, True, False)
        torch.testing.assert_close(found[:2], whole[:2], rtol=1e-12, atol=1e-12)
        assert found[0].is_contiguous(memory_format=fmt) and found[2].shape == (0,)
    checks = ("test_schema", "test_faketensor")
    operator = operator_of(namespace, "tail_gradient")
    torch.library.opcheck(operator, (*maps, *args, True, True, True, False), test_utils=checks)
    if backend != "triton":
        with pytest.raises(RuntimeError, match="lost"):
            of_gradient(*args[:4], lost[:1], *tail.functions, True, True, True, False)


def test_a_residual_alone_may_need_its_gradient() -> None:
    """Of a norm by the batch's statistics, too, for which nobody asks then."""
    cases.require("cpu")
    tail, tensors = make(gated=False)
    x, residual, weight, bias = (t.detach() for t in tensors[:4])
    residual.requires_grad_()
    y = apply_tail("chattn_cuda", tail, x, residual, weight, bias)[0]
    (found,) = torch.autograd.grad(y.sum(), residual)
    assert torch.equal(found, (y > 0).to(found.dtype))


def test_gradients_through_an_operator_alone_are_refused() -> None:
    """None of the four has one of its own."""
    cases.require("cpu")
    x = torch.randn(N, C, *HW, requires_grad=True)
    numbers = torch.ops.chattn_cuda.tail_squeeze(
        x, None, None, None, None, [], 0.0, 1e-3, 0, 0.0, True
    )[0]
    with pytest.raises(NotImplementedError, match="tail_squeeze has no derivative"):
        numbers.sum().backward()


def test_kept_are_one_map_and_bits() -> None:
    """The input, a bit per position of the mask, and numbers per plane."""
    cases.require("cpu")
    kept = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    norm = Norm(None, None, 1e-3)
    tail = Tail(norm, None, (0, 0.0), (CODES["relu"], 0.0))
    x, residual = (torch.randn(4, 16, 32, 32, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        apply_tail("chattn_cuda", tail, x, residual, None, None)
    sizes = sorted(kept.values(), reverse=True)
    assert sizes[0] == x.nbytes and sizes[1] == x.nbytes // 32
    assert sum(sizes[2:]) < x.nbytes // 64
