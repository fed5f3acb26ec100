"""The Triton kernels against float64: on a GPU, or on the CPU in Triton's interpreter.

The cases that all backends share are in test_numerics; here is what only these kernels have: their
own elementary functions, the engine's passes over several maps, the plans that a GPU gets, launch
counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language", reason="triton is not installed")

from chattn_cuda import activations  # noqa: E402
from chattn_cuda.triton import (  # noqa: E402
    host,
    interpreting,
    plan,
    program,
    registration,
    se,
    why_not,
)
from chattn_cuda.triton.kernels import activations as device_activations  # noqa: E402
from chattn_cuda.triton.kernels.activations import (  # noqa: E402
    activate,
    activation_gradient,
    exp,
    expm1_nonpositive,
    gate_gradient,
    sigmoid,
    tanh,
    to_storage,
)
from chattn_cuda.triton.kernels.passes import (  # noqa: E402
    channels_and_length,
    emit_tile,
    locate,
    offsets,
    over_length,
    read,
    sum_length,
)

DEVICE = "cpu" if interpreting() else "cuda"
if (reason := why_not(DEVICE)) is not None:
    pytest.skip(reason, allow_module_level=True)

registration.register()
ops = torch.ops.chattn_cuda_triton

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
GATES = [a for a in activations.ACTIVATIONS.values() if a.is_gate]
RELU, SIGMOID = activations.ACTIVATIONS["relu"], activations.ACTIVATIONS["sigmoid"]
SHAPES = {  # (N, C, H, W), rd
    "hw1": ((3, 300, 1, 1), 19),
    "hw25": ((2, 17, 5, 5), 3),
    "hw49": ((2, 228, 7, 7), 19),
    "hw64": ((2, 16, 8, 8), 1),
    "hw197": ((2, 17, 1, 197), 5),
    "hw361": ((1, 11, 19, 19), 19),
    "batch": ((35, 20, 2, 3), 6),
    "one": ((1, 1, 1, 1), 1),
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(hash((shape, seed)) % 2**31)
    return torch.randn(shape, generator=random, dtype=torch.float64)


def formula(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: activations.Activation,
    param: float,
    gate: activations.Activation,
) -> tuple[Tensor, Tensor]:
    p = x.mean((2, 3))
    s = act.function(F.linear(p, w1.flatten(1), b1), param)
    s = gate.function(F.linear(s, w2.flatten(1), b2), 0.0)
    return x * s[:, :, None, None], s


def check(name: str, actual: Tensor, exact: Tensor, acc: torch.dtype) -> None:
    """One rounding to the result's type, elementwise, and 64 units of the accumulation type."""
    assert actual.shape == exact.shape, name
    rounding = 0.51 * torch.finfo(actual.dtype).eps * exact.abs()
    rest = 64 * torch.finfo(acc).eps * exact.abs().amax() if exact.numel() else 0
    error = (actual.cpu().double() - exact).abs()
    worst = float((error - rounding - rest).amax()) if exact.numel() else 0.0
    assert worst <= torch.finfo(actual.dtype).tiny, f"{name}: {error.amax():.3e}"


def run(
    shape: tuple[int, int, int, int],
    rd: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
    act: activations.Activation = RELU,
    gate: activations.Activation = SIGMOID,
    bias: bool = True,
    conv: bool = False,
    weights: torch.dtype | None = None,
    x: Tensor | None = None,
    dy: Tensor | None = None,
) -> dict[str, Tensor]:
    """Forward and backward of the operators, checked against float64."""
    n, c, _, _ = shape
    tail = (1, 1) if conv else ()
    wdtype = weights or dtype
    x = (randn(*shape) if x is None else x).to(dtype)
    parameters = [
        (randn(rd, c, *tail, seed=1) / c**0.5).to(wdtype),
        (0.3 * randn(rd, seed=2) + 0.3).to(wdtype) if bias else None,
        (randn(c, rd, *tail, seed=3) / rd**0.5).to(wdtype),
        (0.5 * randn(c, seed=4)).to(wdtype) if bias else None,
    ]
    dy = (randn(*shape, seed=5) if dy is None else dy).to(dtype)
    dgate = randn(n, c, seed=6)

    leaves = [p.double().clone().requires_grad_() for p in (x, *parameters) if p is not None]
    given = iter(leaves)
    inputs = [None if p is None else next(given) for p in (x, *parameters)]
    y, s = formula(*inputs, act, act.param, gate)
    exact = torch.autograd.grad((y, s), leaves, (dy.double(), dgate))

    x = x.contiguous(memory_format=LAYOUTS[layout]).to(DEVICE)
    parameters = [None if p is None else p.to(DEVICE) for p in parameters]
    how = (act.code, act.param, gate.code)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    out = ops.se_forward(x, *parameters, *how)
    back = ops.se_backward(
        dy.to(DEVICE),
        dgate.to(DEVICE, acc),
        x,
        *out[1:],
        parameters[0],
        parameters[2],
        *how,
        True,
        True,
    )
    check("y", out[0], y.detach(), acc)
    check("gate", out[3], s.detach(), acc)
    grads = dict(zip(("dx", "dw1", "db1", "dw2", "db2"), back, strict=True))
    if not bias:
        exact = (exact[0], exact[1], None, exact[2], None)
    for (name, grad), want in zip(grads.items(), exact, strict=True):
        if want is not None:
            check(name, grad, want, acc)
    for t in (out[0], back[0]):
        assert t.dtype == dtype and t.is_contiguous(memory_format=LAYOUTS[layout])
    assert back[1].shape == parameters[0].shape and back[1].dtype == wdtype
    return {"y": out[0], "gate": out[3], **grads}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SHAPES)
def test_sizes(size: str, layout: str, dtype: torch.dtype) -> None:
    run(*SHAPES[size], dtype, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activations(name: str, dtype: torch.dtype) -> None:
    run((3, 17, 3, 3), 5, dtype, act=activations.ACTIVATIONS[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("gate", GATES, ids=lambda g: g.name)
def test_gates(gate: activations.Activation, dtype: torch.dtype) -> None:
    run((3, 17, 3, 3), 5, dtype, gate=gate)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_float32_weights_with_16_bit_maps(dtype: torch.dtype, layout: str) -> None:
    run((2, 17, 3, 5), 4, dtype, layout, weights=torch.float32, conv=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_bias(layout: str) -> None:
    run((2, 17, 3, 5), 4, layout=layout, bias=False, conv=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "rd"), [((1, 2, 70, 96), 3), ((3, 70, 5, 5), 40), ((6, 40, 13, 1), 33)]
)
def test_plans_of_a_gpu(
    shape: tuple[int, int, int, int],
    rd: int,
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small tiles, many splits: what the kernels get outside the interpreter."""
    monkeypatch.setattr(host, "FILL", plan.FILL)
    monkeypatch.setattr(se.se_forward, "programs", {})
    monkeypatch.setattr(se.se_backward, "programs", {})
    run(shape, rd, layout=layout)


LAYOUT_OF: dict[str, Callable[[Tensor], Tensor]] = {
    "crop": lambda t: F.pad(t, (1, 2, 2, 1))[:, :, 2:-1, 1:-2],
    "channel_slice": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda t: t[:1, :, :1, :1].expand(t.shape),
}


@pytest.mark.parametrize("how", LAYOUT_OF)
def test_any_strides(how: str) -> None:
    shape = (3, 6, 4, 5)
    x, dy = LAYOUT_OF[how](randn(*shape)), LAYOUT_OF[how](randn(*shape, seed=1))
    want = run(shape, 4, x=x.contiguous(), dy=dy.contiguous())
    x, dy = (LAYOUT_OF[how](t.contiguous().float()).to(DEVICE) for t in (x, dy))
    w1, b1 = randn(4, 6, seed=1).div(6**0.5), 0.3 * randn(4, seed=2) + 0.3
    w2, b2 = randn(6, 4, seed=3).div(4**0.5), 0.5 * randn(6, seed=4)
    w1, b1, w2, b2 = (t.float().to(DEVICE) for t in (w1, b1, w2, b2))
    w1 = w1.t().contiguous().t()  # weights need not be contiguous either
    b2 = torch.stack([b2, b2], 1)[:, 0]
    constants = (RELU.code, 0.0, SIGMOID.code)
    out = ops.se_forward(x, w1, b1, w2, b2, *constants)
    dgate = randn(3, 6, seed=6).float().to(DEVICE)
    back = ops.se_backward(dy, dgate, x, *out[1:], w1, w2, *constants, True, True)
    for name, t in zip(("y", "dx", "dw1", "dw2"), (out[0], back[0], back[1], back[3]), strict=True):
        torch.testing.assert_close(t, want[name], rtol=0, atol=0)


def _op_inputs(shape: tuple[int, int, int, int], rd: int) -> tuple[Tensor, ...]:
    c = shape[1]
    sizes = (shape, (rd, c), (rd,), (c, rd), (c,))
    return tuple(randn(*s, seed=i).float().to(DEVICE) for i, s in enumerate(sizes))


def test_empty_batch() -> None:
    x, w1, b1, w2, b2 = _op_inputs((0, 6, 4, 5), 3)
    how = (RELU.code, 0.0, SIGMOID.code)
    out = ops.se_forward(x, w1, b1, w2, b2, *how)
    assert [tuple(t.shape) for t in out] == [
        (0, 6, 4, 5),
        (0, 6),
        (0, 3),
        (0, 6),
    ]
    back = ops.se_backward(x, None, x, *out[1:], w1, w2, *how, True, True)
    assert back[0].shape == x.shape
    for grad, like in zip(back[1:], (w1, b1, w2, b2), strict=True):
        assert torch.equal(grad, torch.zeros_like(like))


@pytest.mark.parametrize("need_dw", [False, True])
@pytest.mark.parametrize("need_dx", [False, True])
def test_only_what_is_needed(need_dx: bool, need_dw: bool) -> None:
    x, w1, b1, w2, b2 = _op_inputs((2, 6, 4, 5), 3)
    how = (RELU.code, 0.0, SIGMOID.code)
    out = ops.se_forward(x, w1, b1, w2, b2, *how)
    arguments = (x, None, x, *out[1:], w1, w2, *how)
    back = ops.se_backward(*arguments, need_dx, need_dw)
    full = ops.se_backward(*arguments, True, True)
    for i, (part, whole) in enumerate(zip(back, full, strict=True)):
        needed = need_dw if i else need_dx
        assert torch.equal(part, whole if needed else torch.empty(0, device=DEVICE))
    _, launches = se.backward_launches(*arguments, need_dx, need_dw)
    assert len(launches) == ((2 + need_dx + need_dw) if need_dx or need_dw else 0)


def test_three_launches_forward_and_four_backward() -> None:
    x, w1, b1, w2, b2 = _op_inputs((2, 6, 30, 50), 3)
    how = (RELU.code, 0.0, SIGMOID.code)
    out, forward = se.forward_launches(x, w1, b1, w2, b2, *how)
    _, backward = se.backward_launches(x, None, x, *out[1:], w1, w2, *how, True, True)
    assert (len(forward), len(backward)) == (3, 4)


def test_bitwise_reproducible() -> None:
    first, second = (run((2, 17, 19, 19), 3, torch.bfloat16) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_register_is_idempotent() -> None:
    registration.register()
    assert ops.se_forward.default._schema.name == "chattn_cuda_triton::se_forward"


def test_activation_codes_are_the_package_s() -> None:
    want = {a.code: a.name for a in activations.ACTIVATIONS.values()}
    assert device_activations.codes == want


# ---- elementary functions ----------------------------------------------------------------------


@triton.jit
def _elementwise_kernel(x, y, size, FUNCTION: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    v = tl.load(x + i, mask=i < size, other=0.0)
    if FUNCTION == "exp":
        r = exp(v)
    elif FUNCTION == "expm1":
        r = expm1_nonpositive(v)
    elif FUNCTION == "tanh":
        r = tanh(v)
    elif FUNCTION == "sigmoid":
        r = sigmoid(v)
    elif FUNCTION == "activate":
        r = activate(v, A, B)
    elif FUNCTION == "activation_gradient":
        r = activation_gradient(v, tl.full(v.shape, 1, v.dtype), A, B)
    elif FUNCTION == "gate_gradient":
        r = gate_gradient(v, tl.full(v.shape, 1, v.dtype), A)
    else:
        r = to_storage(v, y.dtype.element_ty)
    tl.store(y + i, r, mask=i < size)


def elementwise(
    x: Tensor, function: str, a: int = 0, b: float = 0.0, dtype: torch.dtype | None = None
) -> Tensor:
    x = x.to(DEVICE)
    y = torch.empty_like(x, dtype=dtype or x.dtype)
    grid = (triton.cdiv(x.numel(), 1024),)
    import numpy

    with numpy.errstate(all="ignore"):
        _elementwise_kernel[grid](x, y, x.numel(), function, a, b)
    return y.cpu()


def points(dtype: torch.dtype, low: float, high: float) -> Tensor:
    spread = torch.linspace(low, high, 3001, dtype=torch.float64)
    near = torch.logspace(-12, 0, 500, dtype=torch.float64)
    near = torch.cat([near, -near, torch.zeros(1, dtype=torch.float64)])
    return torch.cat([spread, near[(near >= low) & (near <= high)]]).to(dtype)


def ulps(actual: Tensor, exact: Tensor) -> float:
    """Largest error in units in the last place of the exact value."""
    bits = {torch.float32: 24, torch.float64: 53}[actual.dtype]
    least = torch.finfo(actual.dtype).smallest_normal
    exponent = torch.frexp(exact.abs().clamp_min(least)).exponent
    unit = torch.ldexp(torch.ones_like(exact), exponent - bits)
    return float(((actual.double() - exact).abs() / unit).amax())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    ("name", "low", "high", "limit"),
    [
        ("exp", -86.0, 88.0, 2.0),
        ("expm1", -60.0, 0.0, 2.5),
        ("tanh", -30.0, 30.0, 4.0),
        ("sigmoid", -80.0, 80.0, 4.0),
    ],
)
def test_elementary_functions(
    name: str, low: float, high: float, limit: float, dtype: torch.dtype
) -> None:
    x = points(dtype, low, high)
    exact = getattr(torch, name)(x.double())  # for float64: within one unit itself
    assert ulps(elementwise(x, name), exact) <= limit + (dtype == torch.float64)


def test_exp_at_the_ends_of_its_range() -> None:
    x = torch.tensor([89.0, 1e30, math.inf, -103.0, -104.5, -1e30, -math.inf, math.nan, -90.0])
    torch.testing.assert_close(
        elementwise(x, "exp"), torch.exp(x.double()).float(), equal_nan=True, rtol=1e-6, atol=2e-45
    )
    x = x.double() * 8
    torch.testing.assert_close(
        elementwise(x, "exp"), torch.exp(x), equal_nan=True, rtol=1e-14, atol=0
    )


SPECIAL = [
    -math.inf,
    -1e4,
    -100.0,
    -30.0,
    -3.0,
    -1.0,
    -0.0,
    0.0,
    1.0,
    3.0,
    6.0,
    21.0,
    1e4,
    math.inf,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activations_elementwise(name: str, dtype: torch.dtype) -> None:
    """Values and derivatives, at kinks and beyond the range of exp too; NaN stays."""
    act = activations.ACTIVATIONS[name]
    eps = torch.finfo(dtype).eps
    x = torch.cat([points(dtype, -20.0, 20.0), torch.tensor(SPECIAL, dtype=dtype)])
    z = x.double().requires_grad_()
    exact = act.function(z, act.param)
    (slope,) = torch.autograd.grad(exact.sum(), z)
    y = elementwise(x, "activate", act.code, act.param)
    torch.testing.assert_close(
        y.double(), exact.detach(), rtol=8 * eps, atol=8 * eps, equal_nan=True
    )
    d = elementwise(x, "activation_gradient", act.code, act.param)
    finite = x.isfinite()  # at infinity the derivatives of some are NaN in PyTorch
    torch.testing.assert_close(d[finite].double(), slope[finite], rtol=64 * eps, atol=64 * eps)
    nan = elementwise(torch.full((3,), math.nan, dtype=dtype), "activate", act.code, act.param)
    assert nan.isnan().all()


@pytest.mark.parametrize("gate", GATES, ids=lambda g: g.name)
def test_gate_derivative_from_its_value(gate: activations.Activation) -> None:
    z = points(torch.float64, -8.0, 8.0).requires_grad_()
    s = gate.function(z, 0.0)
    (slope,) = torch.autograd.grad(s.sum(), z)
    d = elementwise(s.detach(), "gate_gradient", gate.code)
    torch.testing.assert_close(d, slope, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_storage_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    halves = torch.arange(1, 4097, dtype=torch.float32) + torch.tensor(0.5)
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 3.4e38, -7e-8])
    x = torch.cat([halves, halves * 2.0**-7, randn(4000).float() * 100, special])
    assert torch.equal(
        elementwise(x, "storage", dtype=dtype).nan_to_num(7), x.to(dtype).nan_to_num(7)
    )


# ---- the engine --------------------------------------------------------------------------------


@triton.jit
def _fold_moments(state, xs, numbers, at, CONSTANTS: tl.constexpr):
    # Welford's count, mean and sum of squared deviations, of the first map
    x, there = read(xs[0], at, state[0].dtype), at[1]
    count = state[0] + tl.where(there, 1.0, 0.0)
    deviation = x - state[1]
    mean = state[1] + tl.where(there, deviation / tl.where(there, count, 1.0), 0.0)
    return count, mean, state[2] + tl.where(there, deviation * (x - mean), 0.0)


@triton.jit
def _merge_moments(state, K: tl.constexpr, CL: tl.constexpr):
    count = sum_length(state[0], CL)
    mean = sum_length(state[0] * state[1], CL) / tl.where(count > 0, count, 1.0)
    apart = state[1] - over_length(mean, CL)
    return (count, mean, sum_length(state[2] + state[0] * apart * apart, CL))[K]


@triton.jit
def _mix(xs, numbers, at, CONSTANTS: tl.constexpr):
    a, b = read(xs[0], at, numbers[0].dtype), read(xs[1], at, numbers[0].dtype)
    return a + b * numbers[0] * CONSTANTS[0], a * numbers[1]


@triton.jit
def _mix_kernel(
    xs, gates, ys, n_size, mid_size, inner_units, steps, c_tiles, splits,
    ALIGN: tl.constexpr, CL: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    n, c, split = locate(tl.program_id(0), c_tiles, splits, TN, TC, CL)
    where = n[:, None] * C + c[None, :]
    mask = (n < n_size)[:, None] & (c < C)[None, :]
    s = (tl.load(gates[0] + where, mask=mask), tl.load(gates[1] + where, mask=mask))
    emit_tile(xs, s, ys, n, c, split, steps, n_size, C, L, _mix, CL, TN, TC, TL, (3.0,))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 17, 5, 5), (2, 8, 30, 41)])
def test_passes_over_two_maps(shape: tuple[int, int, int, int], layout: str) -> None:
    """The engine takes M maps, and element functions that it has never seen."""
    n, c, h, w = shape
    cl = layout == "nhwc"
    a, b, g = (randn(*shape, seed=i).float() for i in range(3))
    a, b, g = (t.contiguous(memory_format=LAYOUTS[layout]).to(DEVICE) for t in (a, b, g))

    def folded(made: tuple[Tensor, host.Launch]) -> Tensor:
        parts, (kernel, programs, args) = made
        kernel[(programs,)](*args)
        return parts.double()

    for m, part in enumerate(folded(host.reduce(g, (a, b), cl))):
        want = (g.double() * (a, b)[m].double()).sum((2, 3))
        torch.testing.assert_close(part.sum(0), want, rtol=1e-5, atol=1e-4)
    want = (a.double() + b.double()).sum((2, 3))
    got = folded(host.squeeze((a, b), cl, 2)).sum(0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)

    count, mean, squares = folded(
        host.fold((a + 5,), cl, _fold_moments, merge=_merge_moments, states=3)
    )
    assert (count.sum(0) == h * w).all()
    total = (count * mean).sum(0) / (h * w)
    torch.testing.assert_close(total, (a.double() + 5).mean((2, 3)), rtol=1e-6, atol=0)
    variance = (squares + count * (mean - total) ** 2).sum(0) / (h * w)
    want = a.double().var((2, 3), correction=0)
    torch.testing.assert_close(variance, want, rtol=1e-5, atol=0)

    p = plan.plan_pass(n, c, h * w, cl, 4, 2)
    gates = tuple(randn(n, c, seed=i).float().to(DEVICE) for i in (3, 4))
    y, z = torch.empty_like(a), torch.empty_like(a)
    _mix_kernel[(p.programs,)]((a, b), gates, (y, z), *host.sizes(p, n), *host.constants(p))
    s, t = (v[:, :, None, None] for v in gates)
    torch.testing.assert_close(y, a + 3 * b * s)
    torch.testing.assert_close(z, a * t)


@triton.jit
def _offsets_kernel(
    out, pid, mid_size, inner_units, c_tiles, splits, step,
    ALIGN: tl.constexpr, CL: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    C, L = channels_and_length(mid_size, inner_units, ALIGN, CL)
    n, c, split = locate(tl.cast(pid, tl.int32), c_tiles, splits, TN, TC, CL)
    pos = tl.cast(step, tl.int64) * TL + tl.arange(0, TL)
    offs = offsets(n, c, pos, C, L, CL)
    i = tl.arange(0, TN * TC * TL)
    tl.store(out + i, tl.reshape(offs, [TN * TC * TL]))
    tl.store(out + TN * TC * TL + tl.arange(0, 1), tl.full([1], 0, tl.int64) + split)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("n", "c", "length"), [(64, 2048, 65536), (1, 2, 2**32), (2, 2**32, 1)])
def test_offsets_are_64_bit(n: int, c: int, length: int, channels_last: bool) -> None:
    """The last tile of a map with 2^33 elements."""
    p = plan.plan_pass(n, c, length, channels_last, 2)
    size = p.tile_n * p.tile_c * p.tile_l
    out = torch.empty(size + 1, dtype=torch.int64, device=DEVICE)
    blocks = length // p.tile_l
    _offsets_kernel[(1,)](
        out, p.programs - 1, p.mid, p.units, p.c_tiles, p.splits, blocks - 1,
        p.align, channels_last, p.tile_n, p.tile_c, p.tile_l,
    )  # fmt: skip
    out = out.cpu()
    assert out[-1] == p.splits - 1
    assert out[size - 1] == n * c * length - 1 == out[:-1].max()
    row = c if channels_last else length
    tile = (p.tile_l, p.tile_c) if channels_last else (p.tile_c, p.tile_l)
    first = (n - p.tile_n) * c * length + (c * length - 1 - (tile[0] - 1) * row - (tile[1] - 1))
    assert out[0] == first


def test_cpu_tensors_outside_the_interpreter_get_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotInterpreted:
        value = False

    monkeypatch.setattr(program, "INTERPRETED", NotInterpreted)
    monkeypatch.setattr(se.se_forward, "programs", {})
    x, w1, b1, w2, b2 = (t.cpu() for t in _op_inputs((2, 6, 4, 5), 3))
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        ops.se_forward(x, w1, b1, w2, b2, RELU.code, 0.0, SIGMOID.code)


@pytest.mark.gpu
def test_more_than_2_to_31_elements() -> None:
    shape = (2, 17, 8192, 8192)
    free, _ = torch.cuda.mem_get_info()
    if free < 5 * 2 * math.prod(shape):
        pytest.skip("needs 23 GB of GPU memory")
    x = torch.randn(shape[1:], dtype=torch.float16, device="cuda").expand(shape).contiguous()
    _, w1, b1, w2, b2 = (t.half().cuda() for t in _op_inputs((1, 17, 1, 1), 3))
    how: tuple[Any, ...] = (RELU.code, 0.0, SIGMOID.code)
    y, *_, gate = out = ops.se_forward(x, w1, b1, w2, b2, *how)
    assert torch.equal(y[1], (x[1].float() * gate[1, :, None, None]).half())
    assert torch.equal(gate[0], gate[1])
    dx = ops.se_backward(x, None, x, *out[1:], w1, w2, *how, True, False)[0]
    assert torch.equal(dx[0], dx[1])
