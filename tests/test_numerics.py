"""Every backend against float64, forward and backward, over the case table."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from chattn_cuda import accelerate
from chattn_cuda.functional import squeeze_excite
from tests import cases
from tests.cases import BLOCKS, Case
from tests.compare import assert_close
from tests.results import compared, results


@pytest.mark.parametrize("case", cases.table())
def test_against_float64(case: Case) -> None:
    cases.require(case.backend)
    for result in compared(case):
        result.check()


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_is_bitwise_reproducible(backend: str, layout: str) -> None:
    cases.require(backend)
    for block in BLOCKS.values():
        case = Case(block.name, backend, block.small[0], torch.float32, layout)
        inputs = cases.make_inputs(case)
        runs = []
        for _ in range(2):
            x, parameters, dy = inputs.to(case.dtype, case.device)
            outputs = block.run(x, parameters, case.config.options, backend)
            runs.append(results(outputs, x, parameters, dy, inputs.dgate))
        for name in runs[0]:
            assert torch.equal(runs[0][name], runs[1][name]), name


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(block.name, options, id=name)
        for block in BLOCKS.values()
        for name, options in block.not_finite.items()
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=["nan", "inf", "-inf"])
def test_not_finite_values_go_where_eager_puts_them(
    backend: str, layout: str, dtype: torch.dtype, name: str, options: dict[str, Any], value: float
) -> None:
    cases.require(backend)
    block = BLOCKS[name]
    case = Case(name, backend, cases.Config("nan", (3, 18, 5, 7), options), dtype, layout)
    inputs = cases.make_inputs(case)
    inputs.x[1, 2, 3, 4] = value
    x, parameters, _ = inputs.to(dtype)
    expected, _ = block.eager(x, parameters, options)
    x, parameters, _ = inputs.to(dtype, case.device)
    y, _ = block.run(x, parameters, options, backend)
    assert torch.equal(y.isnan().cpu(), expected.isnan())
    assert torch.equal(y.isinf().cpu(), expected.isinf())
    assert y[0].isfinite().all() and y[2].isfinite().all()


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("act", ["relu", "relu6", "hard_swish", "hard_sigmoid"])
@pytest.mark.parametrize("gate", ["sigmoid", "relu"])
def test_infinite_gradients_stop_where_the_derivative_is_0(
    backend: str, act: str, gate: str
) -> None:
    """As torch selects 0 there: a product with 0 would be NaN."""
    cases.require(backend)
    device = cases.device_of(backend)
    x = torch.tensor([torch.inf, 1.0]).view(1, 1, 1, 2)
    w1, w2 = torch.tensor([[-1.0]]), torch.tensor([[1.0]])

    def gradient(backend: str, device: str) -> Tensor:
        leaf = x.to(device).requires_grad_()
        weights = (w1.to(device), None, w2.to(device), torch.ones(1, device=device))
        y = squeeze_excite(leaf, *weights, act=act, gate=gate, backend=backend)
        (dx,) = torch.autograd.grad(y.sum(), leaf)
        return dx.cpu()

    assert torch.equal(gradient(backend, device).isnan(), gradient("reference", "cpu").isnan())


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "config"),
    [(name, config) for name in BLOCKS for config in BLOCKS[name].small[:3]],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_float32_weights_with_a_16_bit_map(
    backend: str, name: str, config: cases.Config, dtype: torch.dtype
) -> None:
    """What the operators are given under autocast."""
    cases.require(backend)
    block, options = BLOCKS[name], config.options
    inputs = cases.make_inputs(Case(name, backend, config, dtype, "nchw"))
    x, parameters, dy = inputs.to(torch.float64)
    exact = results(block.run(x, parameters, options, "reference"), x, parameters, dy, inputs.dgate)
    x, parameters, dy = inputs.to(dtype)
    eager = results(block.eager(x, parameters, options), x, parameters, dy, inputs.dgate)
    device = cases.device_of(backend)
    x, maps, dy = inputs.to(dtype, device)
    _, parameters, _ = inputs.to(torch.float32, device)
    parameters |= {k: p for k, p in maps.items() if block.is_map(k)}
    with torch.autocast(device, dtype=dtype):
        outputs = block.run(x, parameters, options, backend)
    for key, value in results(outputs, x, parameters, dy, inputs.dgate).items():
        kind = dtype if key == "y" or block.is_map(key[1:]) else torch.float32
        empty = config.shape[0] == 0
        assert_close(key, value, exact[key], eager[key], dtype=kind, allow_zero=empty)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_every_16_bit_number_is_read_and_rounded_on_the_cpu(dtype: torch.dtype) -> None:
    """To nearest even, infinities and subnormal numbers too; a NaN stays one."""
    cases.require("cpu")
    x = torch.arange(2**16 + 3).to(torch.uint16).view(dtype).view(1, 1, 1, -1)  # a part of a vector
    norm = timm.layers.BatchNormAct2d(1, eps=0.0, apply_act=False).eval()
    accelerate(norm, "cpu")
    for factor in (1.0, 1.0 + 2.0**-8, 1.0 + 2.0**-11, 1 / 3):
        norm.weight.data.fill_(factor)
        with torch.no_grad():
            found, expected = norm(x), (x.float() * norm.weight).to(dtype)
        assert torch.equal(found.isnan(), x.isnan())
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
