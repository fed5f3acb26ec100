"""Results do not depend on the order in which threads run, nor on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import cases, host_backend
from tests.cases import BLOCKS, Case
from tests.cuda_host import build, operators
from tests.cuda_host.control import PROFILES
from tests.results import results

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

# (name, options, whether only `make sanitize` runs it)
MODES = (
    ("depth", {"order": "depth"}, True),
    ("reverse", {"order": "reverse"}, False),
    *((f"random{i}", {"order": "random", "seed": i}, i > 1) for i in range(1, 7)),
    *((f"preempt{i}", {"order": "random", "seed": i, "preempt": 0.02}, True) for i in range(3)),
    *((f"prio{i}", {"order": "prio", "seed": i}, i > 1) for i in range(1, 7)),
)


def modes() -> list[Any]:
    return [
        pytest.param(options, id=name, marks=[pytest.mark.sanitize] * slow)
        for name, options, slow in MODES
    ]


def small_cases() -> list[Any]:
    """Every small size in every type and layout."""
    return [
        pytest.param(case, id=case.id)
        for block in BLOCKS.values()
        if block.op
        for config in (*block.small, *block.shared_sums)
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


_in_default_order: dict[str, dict[str, Tensor]] = {}


def require_same_bits(case: Case, **options: Any) -> None:
    if case.id not in _in_default_order:
        _in_default_order[case.id] = run(case)
    expected = _in_default_order[case.id]
    for name, value in run(case, **options).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("mode", modes())
@pytest.mark.parametrize("case", small_cases())
def test_order_of_threads(case: Case, mode: dict[str, Any]) -> None:
    """Bit by bit the same, and no race."""
    require_same_bits(case, races=True, **mode)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("sm", PROFILES)
def test_device_profiles(sm: int, layout: str) -> None:
    """The launches with the most shared memory fit every device, and compute the same bits."""
    for config in (
        cases.Config("hw100", (1, 65, 10, 10), {"rd": 4}),
        cases.Config("many_planes", (2, 4200, 1, 1), {"rd": 4}),
    ):
        for dtype in (torch.float64, torch.float16):
            require_same_bits(Case("se", host_backend.NAME, config, dtype, layout), sm=sm)
    # With and without a cluster; the most shared memory, for one that holds a sample.
    for shape in ((3, 70, 9, 9), (40, 272, 7, 7), (1, 48, 64, 64)):
        for options in ({"k": 5}, {"k": 3, "circular": True, "per_channel": True}):
            config = cases.Config(str((shape, options)), shape, options)
            require_same_bits(Case("eca", host_backend.NAME, config, torch.float32, layout), sm=sm)
