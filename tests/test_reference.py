"""The oracle itself: values computed by hand, and parity with other libraries' modules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from chattn_cuda import SqueezeExcite, activations, reference
from chattn_cuda.functional import efficient_channel_attention, squeeze_excite
from tests.cases import BLOCKS
from tests.cases.block import ByHand

F64 = torch.float64


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{block.name}-{case.name}")
        for block in BLOCKS.values()
        for case in block.by_hand
    ],
)
def test_by_hand(case: ByHand) -> None:
    for value, expected in zip(case.compute(), case.expected, strict=True):
        assert value.flatten().tolist() == pytest.approx(expected, abs=case.within, rel=0)


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
