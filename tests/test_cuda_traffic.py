"""What the CUDA kernels move, counted: "the map is read twice" is an assertion, not a claim."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from chattn_cuda import _native
from tests.cuda_host import build
from tests.cuda_host import traffic as layer
from tests.cuda_host.traffic import LAYOUTS, MAPS, Call, measure

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

# (C, H) of ResNet-50's stages, and their hidden channels.
STAGES = {(256, 56): 16, (512, 28): 32, (1024, 14): 64, (2048, 7): 128}
# What a block may move and launch. Floors are in maps; the SE forward reads x twice.
PASSES = {("se", "forward"): 3, ("se", "backward"): 4}
LAUNCHES = {("se", "forward"): 3, ("se", "backward"): 4}
WORST_EFFICIENCY = 0.9
# Bytes of weights and intermediates over bytes of maps, where there are samples enough to share
# weights among. At N = 1 the weights of the last stage alone outweigh its maps.
WORST_SMALL_SHARE = 0.25


def name_of(stage: tuple[int, int]) -> str:
    return f"c{stage[0]}_hw{stage[1]}"


def check_maps(block: str, calls: dict[str, Call]) -> None:
    for direction, call in calls.items():
        assert len(call.report.launches) <= LAUNCHES[block, direction]
        assert call.passes <= PASSES[block, direction]
        assert call.passes <= 1.5 * call.floors.single_read.passes
        assert call.passes == call.floors.two_pass.passes
        for name, buffer in call.maps.items():
            assert buffer.sector_efficiency >= WORST_EFFICIENCY, f"{direction}: {name}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", STAGES, ids=name_of)
@pytest.mark.parametrize("n", [1, 3])
def test_map_traffic(n: int, stage: tuple[int, int], layout: str, dtype: torch.dtype) -> None:
    c, h = stage
    check_maps("se", measure("se", (n, c, h, h), dtype, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", STAGES, ids=name_of)
def test_small_traffic_at_training_batch(stage: tuple[int, int], layout: str) -> None:
    """N = 128 really runs; nothing is extrapolated from a smaller batch."""
    c, h = stage
    calls = measure("se", (128, c, h, h), torch.bfloat16, layout)
    check_maps("se", calls)
    for direction, call in calls.items():
        share = {k: round(v.bytes / call.map_bytes, 4) for k, v in call.small.items()}
        assert call.small_share <= WORST_SMALL_SHARE, f"{direction}, in maps: {share}"


def test_max_pooling_reads_the_map_once_more() -> None:
    """The positions of the maximum are looked up in x while the gradient is written."""
    calls = measure("se", (2, 64, 14, 14), torch.bfloat16, add_maxpool=True)
    assert calls["forward"].passes == 3
    assert calls["backward"].passes == 5


@pytest.mark.parametrize("add_maxpool", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", [*STAGES, (24, 9)], ids=name_of)
def test_planner_tells_what_was_counted(
    stage: tuple[int, int], layout: str, add_maxpool: bool
) -> None:
    native = _native.module()
    if native is None:
        pytest.skip(str(_native.why_not_cpu()))
    c, h = stage
    calls = measure("se", (1, c, h, h), torch.float32, layout, add_maxpool=add_maxpool)
    for direction, call in calls.items():
        planned = native.plan_se(
            1, c, h * h, layer.reduced(c), "float32", layout == "channels_last", add_maxpool,
            direction == "backward",
        )  # fmt: skip
        launches = call.report.launches
        assert len(planned) == len(launches)
        for plan, launch in zip(planned, launches, strict=True):
            assert plan["blocks"] == launch.grid[0] * launch.grid[1] * launch.grid[2]
            assert plan["threads"] == launch.block[0]
        maps = call.maps.values()
        assert sum(p["map_reads"] for p in planned) == sum(m.load_bytes for m in maps)
        assert sum(p["map_writes"] for p in planned) == sum(m.store_bytes for m in maps)


@pytest.mark.parametrize("stage", STAGES, ids=name_of)
def test_hidden_channels_are_those_of_timm(stage: tuple[int, int]) -> None:
    timm = pytest.importorskip("timm.layers")
    assert layer.reduced(stage[0]) == STAGES[stage] == timm.SEModule(stage[0]).fc1.out_channels


def test_command() -> None:
    words = "traffic --block se --shape 2,64,14,14 --dtype bfloat16 --layout channels_last".split()
    done = subprocess.run(
        [sys.executable, "-m", "chattn_cuda", *words],
        capture_output=True,
        text=True,
        cwd=build.ROOT,
    )
    assert done.returncode == 0, done.stderr
    for text in ("Forward", "Backward", "3.000", "4.000", "se_rescale", "two-pass floor"):
        assert text in done.stdout
    for name in MAPS:
        assert re.search(rf"^ *{name} .*\b[12]\.000$", done.stdout, re.MULTILINE), name
