"""The model of the reductions: it explains what was measured, and its plans are the planner's."""

from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path

import pytest
import torch

from tests import counted
from tests.cuda_host import build
from tests.cuda_host import traffic as layer

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import pass_model  # noqa: E402


def test_model_explains_what_was_measured() -> None:
    errors: dict[str, list[float]] = {"rows": [], "planes": [], "tiles": []}
    for (inputs, layout), stages in pass_model.MEASURED.items():
        for (c, h), times in stages.items():
            for n, measured in zip((128, 8), times, strict=True):
                was = pass_model.reduction(inputs, layout, n, c, h, today=False)
                errors[was.kind].append(abs(was.time / measured - 1))
    assert {kind: len(found) for kind, found in errors.items()} == {
        "rows": 16, "planes": 8, "tiles": 8,
    }  # fmt: skip
    for kind, found in errors.items():
        assert max(found) <= 0.20, kind
        assert statistics.mean(found) <= 0.08, kind


@pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 256, 28), (3, 64, 56), (1, 1024, 14), (3, 256, 7)])
def test_plans_are_those_of_the_planner(shape: tuple[int, int, int], layout: str) -> None:
    n, c, h = shape
    calls = layer.measure("se", (n, c, h, h), torch.bfloat16, layout)
    for inputs, direction in ((pass_model.SUM, "forward"), (pass_model.DOT, "backward")):
        launch = calls[direction].report.launches[0]
        planned = pass_model.reduction(inputs, layout, n, c, h)
        assert re.search(r"reduce_(rows|planes|tiles)", launch.symbol)[1] == planned.kind  # type: ignore[index]
        assert launch.grid[0] == planned.blocks


def test_maps_and_launches_of_tails_are_the_counted_ones() -> None:
    (stage,) = {row["shape"] for row in counted.read() if row["shape"].endswith("x256x56x56")}
    for layout in ("channels_last", "nchw"):
        rows = [r for r in counted.read() if r["block"] == "tail" and r["shape"] == stage]
        rows = [r for r in rows if r["layout"] == layout]
        for gate in (True, False):
            found = pass_model.tail(gate, True, layout)
            found = {k: v for k, v in found.items() if not k.startswith("gate")}  # another block's
            assert len(found) == sum(int(row["launches"]) for row in rows)
            maps = sum(moved for moved, _ in found.values()) - 3 * pass_model.MASK
            assert maps == sum(float(row["maps"]) for row in rows)


@pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_plans_of_tails_are_those_of_the_planner(layout: str) -> None:
    n, c, h = 3, 256, 56
    calls = layer.measure("tail", (n, c, h, h), torch.bfloat16, layout)
    for inputs, direction in ((pass_model.SUM, "forward"), (pass_model.DOT, "backward")):
        plan = pass_model.reduction(inputs, layout, n, c, h)
        assert calls[direction].report.launches[0].grid[0] == plan.blocks


def test_a_mask_and_fewer_blocks_at_once_take_longer() -> None:
    plain = pass_model.reduction(pass_model.DOT, "channels_last", *pass_model.SHAPE)
    tail = pass_model.tail_reduction(pass_model.DOT, "channels_last", pass_model.MASK)
    assert tail.bytes / plain.bytes == pytest.approx(1 + 1 / 32)  # of two maps
    assert plain.time < tail.time < 1.3 * plain.time


def test_batches_are_those_of_the_kernels() -> None:
    """What the source says of places in flight, and what the table says of registers."""
    from tests.cuda_resources import read

    table = read()
    for (kind, inputs), (_, resident) in pass_model.RESIDENT.items():
        op = "SumOp<bfloat16_t, 1>" if inputs == pass_model.SUM else "DotOp<bfloat16_t, 1, false>"
        row = table[f"reduce_{kind}<bfloat16_t, 8, {op}>", 90]
        assert int(row["blocks_per_sm"]) == resident, row
    for (kind, inputs), resident in pass_model.RESIDENT_OF_TAILS.items():
        op = "MomentsOp" if inputs == pass_model.SUM else "TailDotOp"
        row = table[f"reduce_{kind}<bfloat16_t, 8, {op}<bfloat16_t>>", 90]
        assert int(row["blocks_per_sm"]) == resident, row
