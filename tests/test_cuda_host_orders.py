"""Results do not depend on the order in which threads run, nor on the device."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import cases, host_backend
from tests.cases import BLOCKS, Case
from tests.cuda_host import build, operators
from tests.cuda_host.control import PROFILES
from tests.test_numerics import results

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

MODES: dict[str, dict[str, Any]] = {
    "depth": {"order": "depth"},
    "reverse": {"order": "reverse"},
    "random1": {"order": "random", "seed": 1},
    "random2": {"order": "random", "seed": 2},
    "preempt": {"order": "random", "seed": 3, "preempt": 0.02},
    "prio1": {"order": "prio", "seed": 1},
    "prio2": {"order": "prio", "seed": 2},
}


def small_cases() -> list[Any]:
    """Every small size in every type and layout."""
    return [
        pytest.param(case, id=case.id)
        for block in BLOCKS.values()
        for config in block.small
        for dtype in cases.DTYPES
        for layout in ("nchw", "nhwc")
        for case in [Case(block.name, host_backend.NAME, config, dtype, layout)]
    ]


def run(case: Case, **options: Any) -> dict[str, Tensor]:
    cases.require(case.backend)
    block = BLOCKS[case.block]
    inputs = cases.make_inputs(case)
    x, parameters, dy = inputs.to(case.dtype)
    with operators.load().options(**options):
        outputs = block.run(x, parameters, case.config.options, case.backend)
        return results(outputs, x, parameters, dy, inputs.dgate)


@functools.cache
def in_default_order(case: Case) -> dict[str, Tensor]:
    return run(case)


def require_same_bits(case: Case, **options: Any) -> None:
    expected = in_default_order(case)
    for name, value in run(case, **options).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.sanitize
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", small_cases())
def test_order_of_threads(case: Case, mode: str) -> None:
    """Bit by bit the same, and no race."""
    require_same_bits(case, races=True, **MODES[mode])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("sm", PROFILES)
def test_device_profiles(sm: int, layout: str) -> None:
    """The launches with the most shared memory fit every device, and compute the same bits."""
    for config in (
        cases.Config("hw100", (1, 65, 10, 10), {"rd": 4, "add_maxpool": True}),
        cases.Config("hw1", (2, 4200, 1, 1), {"rd": 4, "add_maxpool": True}),
    ):
        for dtype in (torch.float64, torch.float16):
            require_same_bits(Case("se", host_backend.NAME, config, dtype, layout), sm=sm)
