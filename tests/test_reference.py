"""The oracle itself: values computed by hand, and parity with other libraries' modules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from chattn_cuda import SqueezeExcite, activations, reference
from chattn_cuda.functional import (
    efficient_channel_attention,
    selective_kernel,
    squeeze_excite,
)

F64 = torch.float64


def by_hand_inputs() -> tuple[torch.Tensor, ...]:
    # One sample, two channels of 1 x 2: means 2 and -1, maxima 3 and 0.
    x = torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]], dtype=F64)
    w1 = torch.tensor([[1.0, 2.0], [1.0, -1.0]], dtype=F64)  # h = (2 - 2, 2 + 1) + b1
    b1 = torch.tensor([-0.5, 0.5], dtype=F64)
    w2 = torch.tensor([[1.0, 0.5], [0.0, -1.0]], dtype=F64)
    b2 = torch.tensor([0.25, 0.5], dtype=F64)
    return x, w1, b1, w2, b2


def test_forward_by_hand() -> None:
    # h = (-0.5, 3.5); relu -> (0, 3.5); z = (1.75 + 0.25, -3.5 + 0.5) = (2, -3)
    y, gate = reference.squeeze_excite(*by_hand_inputs())
    s = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(3))]
    assert gate.flatten().tolist() == pytest.approx(s, abs=1e-15)
    assert y.flatten().tolist() == pytest.approx([s[0], 3 * s[0], -2 * s[1], 0.0], abs=1e-15)


def test_forward_with_maxpool_by_hand() -> None:
    # p = (2 + 3, -1 + 0) / 2 = (2.5, -0.5); h = (1.5 - 0.5, 3 + 0.5) = (1, 3.5)
    # z = (1 + 1.75 + 0.25, -3.5 + 0.5) = (3, -3)
    _, gate = reference.squeeze_excite(*by_hand_inputs(), add_maxpool=True)
    s = [1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))]
    assert gate.flatten().tolist() == pytest.approx(s, abs=1e-15)


def test_gradient_by_hand() -> None:
    # Identity gate and L = y[0, 0, 0, 0] = x00 * z0, so that every step is a product.
    inputs = [t.requires_grad_() for t in by_hand_inputs()]
    x, w1, b1, w2, b2 = inputs
    y, _ = reference.squeeze_excite(*inputs, gate=lambda z: z)
    dx, dw1, db1, dw2, db2 = torch.autograd.grad(y[0, 0, 0, 0], inputs)
    # dz = (x00, 0) = (1, 0); da = (1, 0.5); dh = (0, 0.5) as h0 < 0; p = (2, -1)
    assert db2.tolist() == [1.0, 0.0]
    assert dw2.tolist() == [[0.0, 3.5], [0.0, 0.0]]
    assert db1.tolist() == [0.0, 0.5]
    assert dw1.tolist() == [[0.0, 0.0], [1.0, -0.5]]
    # dp = w1^T dh = (0.5, -0.5), spread over two pixels; and the gate z0 = 2 itself at x00
    assert dx.flatten().tolist() == [2.25, 0.25, -0.25, -0.25]


# ---- efficient channel attention: means 2, -1, 4 of three channels of 1 x 2
ECA_X = [[[1.0, 3.0]], [[-2.0, 0.0]], [[4.0, 4.0]]]


@pytest.mark.parametrize(
    ("weight", "circular", "z"),
    [
        # w = (1, 2, 3): z[c] = p[c-1] + 2 p[c] + 3 p[c+1]
        ([[[1.0, 2.0, 3.0]]], False, [0 + 4 - 3, 2 - 2 + 12, -1 + 8 + 0]),
        ([[[1.0, 2.0, 3.0]]], True, [4 + 4 - 3, 2 - 2 + 12, -1 + 8 + 6]),
        ([[[0.5]]], False, [1.0, -0.5, 2.0]),
        # Weights of its own for every channel
        ([[[1.0, 2.0, 3.0]], [[0.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]]], False, [1, -1, -1]),
        ([[[1.0, 2.0, 3.0]], [[0.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]]], True, [5, -1, 1]),
    ],
)
def test_eca_by_hand(weight: list[list[list[float]]], circular: bool, z: list[float]) -> None:
    x = torch.tensor([ECA_X], dtype=F64)
    w = torch.tensor(weight, dtype=F64)
    y, gate = reference.efficient_channel_attention(x, w, circular=circular)
    s = [1 / (1 + math.exp(-v)) for v in z]
    assert gate.flatten().tolist() == pytest.approx(s, abs=1e-15)
    expected = [s[0], 3 * s[0], -2 * s[1], 0.0, 4 * s[2], 4 * s[2]]
    assert y.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_eca_gradient_by_hand() -> None:
    # Identity gate and L = y[0, 1, 0, 0] = x10 * z1 with z1 = w0 p0 + w1 p1 + w2 p2
    x = torch.tensor([ECA_X], dtype=F64, requires_grad=True)
    w = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=F64, requires_grad=True)
    y, _ = reference.efficient_channel_attention(x, w, gate=lambda z: z)
    dx, dw = torch.autograd.grad(y[0, 1, 0, 0], (x, w))
    # dz1 = x10 = -2: dw = -2 p, dp = -2 w, each over two pixels; and the gate z1 = 12 at x10
    assert dw.flatten().tolist() == [-4.0, 2.0, -8.0]
    assert dx.flatten().tolist() == [-1.0, -1.0, 12.0 - 2.0, -2.0, -3.0, -3.0]


# ---- the selective kernel: two branches of two channels of 1 x 2, means 2, -1 and 1, 3
SK_U = [[[[1.0, 3.0]], [[-2.0, 0.0]]], [[[2.0, 0.0]], [[4.0, 2.0]]]]


def test_sk_by_hand() -> None:
    # p = (2 + 1, -1 + 3) = (3, 2); h = relu(3 - 2, -3 + 2 + 0.5) = (1, 0)
    # z = (2, 0) + b for the first branch, (1, 0) + b for the second: differences 1 and -1.5
    branches = [torch.tensor([u], dtype=F64) for u in SK_U]
    w_reduce = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=F64)
    b_reduce = torch.tensor([0.0, 0.5], dtype=F64)
    w_select = torch.tensor([[2.0, 5.0], [0.0, 5.0], [1.0, -5.0], [0.0, -5.0]], dtype=F64)
    b_select = torch.tensor([0.0, 0.0, 0.0, 1.5], dtype=F64)
    assert reference.squeeze_branches(branches).tolist() == [[3.0, 2.0]]
    weights = (w_reduce, b_reduce, w_select, b_select)
    y, gate = selective_kernel(branches, *weights, return_gate=True, backend="reference")
    # softmax of two numbers: the sigmoid of their difference
    a, b = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1.5))
    assert gate.flatten().tolist() == pytest.approx([a, b, 1 - a, 1 - b], abs=1e-15)
    expected = [a + 2 * (1 - a), 3 * a, -2 * b + 4 * (1 - b), 2 * (1 - b)]
    assert y.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_sk_gradient_by_hand() -> None:
    # Channel 0 only: p = 2 + 1, logits z = (1 p + 6, 3 p) = (9, 9), so both gates are 1 / 2.
    # L = y[0] at the first pixel = g0 * 1 + g1 * 2, so dg = (1, 2) and
    # dz = g (dg - sum(g dg)) = 1/2 * ((1, 2) - 3/2) = (-1/4, 1/4)
    branches = [torch.tensor([u[:1]], dtype=F64, requires_grad=True) for u in SK_U]
    w = torch.tensor([[[1.0], [3.0]]], dtype=F64, requires_grad=True)
    b = torch.tensor([[[6.0], [0.0]]], dtype=F64)
    logits = w * reference.squeeze_branches(branches)[:, None] + b
    y, gate = reference.select_branches(branches, logits)
    assert gate.flatten().tolist() == [0.5, 0.5]
    du, dv, dw = torch.autograd.grad(y[0, 0, 0, 0], [*branches, w])
    # dw = dz p; dp = dz w = -1/4 + 3/4 = 1/2, over two pixels: 1/4; and the gates at the first
    assert dw.flatten().tolist() == [-0.75, 0.75]
    assert du.flatten().tolist() == dv.flatten().tolist() == [0.75, 0.25]


@pytest.mark.parametrize("k", [1, 3, 5, 9])
@pytest.mark.parametrize("name", ["EcaModule", "CecaModule"])
def test_eca_matches_timm(name: str, k: int) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = getattr(timm.layers, name)(kernel_size=k, gate_layer="hard_sigmoid").to(F64)
    x = torch.randn(2, 24, 5, 7, dtype=F64)
    y = efficient_channel_attention(
        x,
        theirs.conv.weight,
        gate="hard_sigmoid",
        padding_mode="circular" if name == "CecaModule" else "zeros",
        backend="reference",
    )
    torch.testing.assert_close(y, theirs(x), rtol=1e-12, atol=1e-12)


ACTIVATION_VALUES = {
    "identity": {-1.0: -1.0, 2.0: 2.0},
    "relu": {-1.0: 0.0, 2.0: 2.0},
    "relu6": {-1.0: 0.0, 2.0: 2.0, 7.0: 6.0},
    "leaky_relu": {-1.0: -0.01, 2.0: 2.0},
    "silu": {-1.0: -1 / (1 + math.e), 2.0: 2 / (1 + math.exp(-2))},
    "hard_swish": {-4.0: 0.0, -1.0: -1 / 3, 2.0: 5 / 3, 4.0: 4.0},
    "gelu": {-1.0: -0.5 * math.erfc(1 / math.sqrt(2)), 2.0: 1 + math.erf(math.sqrt(2))},
    "gelu_tanh": {2.0: 1 + math.tanh(math.sqrt(2 / math.pi) * (2 + 0.044715 * 8))},
    "mish": {2.0: 2 * math.tanh(math.log(1 + math.exp(2)))},
    "elu": {-1.0: math.exp(-1) - 1, 2.0: 2.0},
    "sigmoid": {-1.0: 1 / (1 + math.e), 0.0: 0.5},
    "hard_sigmoid": {-4.0: 0.0, -1.0: 1 / 3, 2.0: 5 / 6, 4.0: 1.0},
    "tanh": {-1.0: math.tanh(-1), 2.0: math.tanh(2)},
}


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activation_by_hand_and_against_its_module(name: str) -> None:
    activation = activations.ACTIVATIONS[name]
    function = activation.with_param(activation.param)
    for z, expected in ACTIVATION_VALUES[name].items():
        value = float(function(torch.tensor(z, dtype=F64)))
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-15)
    z = torch.linspace(-8, 8, 401, dtype=F64)
    torch.testing.assert_close(function(z), activation.layer()(z), rtol=1e-12, atol=1e-14)


def test_codes_are_those_of_the_operators() -> None:
    codes = [a.code for a in activations.ACTIVATIONS.values()]
    assert codes == list(range(13))
    gates = {a.name for a in activations.ACTIVATIONS.values() if a.is_gate}
    assert gates == {"identity", "relu", "sigmoid", "hard_sigmoid", "tanh"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_sums_and_gates_are_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 1, 300, 300), 1000.0, dtype=dtype)  # the sum is far above float16's range
    one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
    y, gate = reference.squeeze_excite(x, one / 1000, zero, one, zero)
    assert gate.dtype == torch.float32 and y.dtype == dtype
    assert float(gate) == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-2)


@pytest.mark.parametrize("options", [{}, {"add_maxpool": True}, {"bias": False}])
@pytest.mark.parametrize("act", ["relu", "silu", "hard_swish"])
def test_matches_timm(options: dict[str, bool], act: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.layers.SEModule(
        24, rd_channels=6, act_layer=act, gate_layer="hard_sigmoid", **options
    ).to(F64)
    x = torch.randn(2, 24, 5, 7, dtype=F64)
    y = squeeze_excite(
        x,
        theirs.fc1.weight,
        theirs.fc1.bias,
        theirs.fc2.weight,
        theirs.fc2.bias,
        act=act,
        gate="hard_sigmoid",
        add_maxpool=options.get("add_maxpool", False),
        backend="reference",
    )
    torch.testing.assert_close(y, theirs(x), rtol=1e-12, atol=1e-12)


def test_matches_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    theirs = torchvision.ops.SqueezeExcitation(24, 6, nn.SiLU, nn.Hardsigmoid).to(F64)
    x = torch.randn(2, 24, 5, 7, dtype=F64)
    weights = (theirs.fc1.weight, theirs.fc1.bias, theirs.fc2.weight, theirs.fc2.bias)
    y = squeeze_excite(x, *weights, act="silu", gate="hard_sigmoid", backend="reference")
    torch.testing.assert_close(y, theirs(x), rtol=1e-12, atol=1e-12)


def test_parameters_of_resnet50_are_those_of_the_paper() -> None:
    """Hu et al.: 2/r * sum_s N_s * C_s^2 weights, 2.5 million, here with the biases."""
    stages = ((3, 256), (4, 512), (6, 1024), (3, 2048))
    count = sum(
        n * sum(p.numel() for p in SqueezeExcite(c, rd_divisor=1).parameters()) for n, c in stages
    )
    assert count == 2_530_992
