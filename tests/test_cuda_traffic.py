"""What the CUDA kernels move, counted: "the map is read twice" is an assertion, not a claim."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from chattn_cuda import _native
from chattn_cuda.cli import main
from chattn_cuda.modules import adaptive_kernel_size
from tests.cases.se.cuda import reduced
from tests.cuda_host import build
from tests.cuda_host.traffic import LAYOUTS, Call, measure

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

# (C, H) of ResNet-50's stages, and their hidden channels.
STAGES = {(256, 56): 16, (512, 28): 32, (1024, 14): 64, (2048, 7): 128}
# What a block may move and launch. Floors are in maps; the SE forward reads x twice.
PASSES = {("se", "forward"): 3, ("se", "backward"): 4}
LAUNCHES = {("se", "forward"): 3, ("se", "backward"): 3}
WORST_EFFICIENCY = 0.9
# Bytes of weights and intermediates over bytes of maps, where there are samples enough to share
# weights among. At N = 1 the weights of the last stage alone outweigh its maps.
WORST_SMALL_SHARE = 0.25


def name_of(stage: tuple[int, int]) -> str:
    return f"c{stage[0]}_hw{stage[1]}"


def check_plan(planned: list[dict[str, Any]], call: Call) -> None:
    """What the planner says is what was launched and counted."""
    launches = call.report.launches
    assert len(planned) == len(launches)
    for plan, launch in zip(planned, launches, strict=True):
        assert plan["blocks"] == launch.grid[0] * launch.grid[1] * launch.grid[2]
        assert plan["threads"] == launch.block[0]
    maps = call.maps.values()
    assert sum(p["map_reads"] for p in planned) == sum(m.load_bytes for m in maps)
    assert sum(p["map_writes"] for p in planned) == sum(m.store_bytes for m in maps)


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


@pytest.mark.slow
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


# ---- efficient channel attention: one launch and one read where a tile of channels fits on chip
def check_eca(calls: dict[str, Call], k: int, one_launch: bool, circular: bool = False) -> None:
    """The forward reads the channels at a tile's sides again, unless a cluster holds the sample."""
    forward, backward = calls["forward"], calls["backward"]
    assert backward.passes == 4 == backward.floors.two_pass.passes
    assert len(backward.report.launches) == 4
    if one_launch:
        (launch,) = forward.report.launches
        n, c = forward.shape[:2]
        tiles = launch.grid[0] // n
        alone = tiles > 1 and launch.cluster == 1
        sides = 2 * (k // 2) * (tiles if circular else tiles - 1)
        assert forward.passes == pytest.approx(2 + alone * sides / c, rel=1e-12)
        assert forward.passes <= 2.5
    else:
        assert len(forward.report.launches) == 2
        assert forward.passes == 3 == forward.floors.two_pass.passes
    for direction, call in calls.items():
        for name, buffer in call.maps.items():
            assert buffer.sector_efficiency >= WORST_EFFICIENCY, f"{direction}: {name}"


@pytest.mark.parametrize("sm", [75, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", STAGES, ids=name_of)
def test_eca_map_traffic(stage: tuple[int, int], layout: str, dtype: torch.dtype, sm: int) -> None:
    c, h = stage
    calls = measure("eca", (3, c, h, h), dtype, layout, sm=sm)
    check_eca(calls, adaptive_kernel_size(c), layout == "nchw" and h < 56)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("c", [512, 2048])
def test_eca_reads_the_map_once_at_training_batch(c: int, dtype: torch.dtype) -> None:
    """The single-read floor to the byte: the blocks of a sample form a cluster."""
    for circular in (False, True):
        calls = measure("eca", (64, c, 7, 7), dtype, circular=circular)
        (launch,) = calls["forward"].report.launches
        assert launch.cluster > 1
        assert calls["forward"].passes == 2 == calls["forward"].floors.single_read.passes


def test_eca_reads_the_map_once_where_a_block_holds_a_sample() -> None:
    for sm in (75, 90):
        calls = measure("eca", (3, 32, 7, 7), torch.bfloat16, sm=sm)
        assert calls["forward"].report.launches[0].grid[0] == 3
        assert calls["forward"].passes == 2


def test_eca_without_clusters_reads_the_sides_of_a_tile_again() -> None:
    for circular in (False, True):
        calls = measure("eca", (3, 1024, 7, 7), torch.bfloat16, sm=80, k=7, circular=circular)
        check_eca(calls, 7, True, circular)
        assert calls["forward"].passes > 2


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eca_small_traffic_at_training_batch(layout: str) -> None:
    for direction, call in measure("eca", (128, 2048, 7, 7), torch.bfloat16, layout).items():
        share = {k: round(v.bytes / call.map_bytes, 4) for k, v in call.small.items()}
        assert call.small_share <= WORST_SMALL_SHARE, f"{direction}, in maps: {share}"


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize("options", [{}, {"circular": True}, {"per_channel": True}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", [(512, 28), (2048, 7), (24, 9)], ids=name_of)
def test_eca_planner_tells_what_was_counted(
    stage: tuple[int, int], layout: str, options: dict[str, bool], sm: int
) -> None:
    native = _native.module()
    if native is None:
        pytest.skip(str(_native.why_not_cpu()))
    c, h = stage
    calls = measure("eca", (1, c, h, h), torch.float32, layout, k=5, sm=sm, **options)
    for direction, call in calls.items():
        planned = native.plan(
            "eca", 1, c, h * h, "float32", layout == "channels_last", direction == "backward",
            {"k": 5, "clusters": sm >= 90, **options},
        )  # fmt: skip
        check_plan(planned, call)


# ---- tails: (maps forward, maps backward)
_B = {"inner": 4, "act": 0, "residual": False}  # SiLU before the gate
TAILS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "training": ({}, (4, 6)),
    "inference": ({"of_batch": False, "train": False}, (4, 8)),
    "without-gate": ({"gate": False}, (4, 6)),
    "without-gate-inference": ({"gate": False, "of_batch": False, "train": False}, (3, 8)),
    "pair": ({"gate": False, "residual": False}, (3, 5)),
    "before-the-gate": (_B, (4, 5)),
    "before-the-gate-inference": ({**_B, "of_batch": False}, (3, 5)),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", STAGES, ids=name_of)
def test_tail_map_traffic(
    stage: tuple[int, int], layout: str, dtype: torch.dtype, tail: str
) -> None:
    """What docs/design.md says of tails, to the byte; a mask is an eighth of a byte a position."""
    c, h = stage
    options, passes = TAILS[tail]
    calls = measure("tail", (3, c, h, h), dtype, layout, **options)
    assert (calls["forward"].passes, calls["backward"].passes) == passes
    native = _native.module()
    for direction, call in calls.items():
        assert call.passes == call.floors.two_pass.passes
        for name, buffer in call.maps.items():
            assert buffer.sector_efficiency >= WORST_EFFICIENCY, f"{direction}: {name}"
        if native is not None:
            given = {"residual": 1, "gate": 1, "of_batch": 1, "train": 1, "act": 1, **options}
            planned = native.plan(
                "tail", 3, c, h * h, str(dtype).removeprefix("torch."), layout != "nchw",
                direction == "backward", {k: int(v) for k, v in given.items()},
            )  # fmt: skip
            check_plan(planned, call)
    if (mask := calls["forward"].report.buffers.get("mask")) is not None:
        assert mask.store_bytes == 3 * c * h * h / 8


# ---- selective kernels: the network in between separates the two passes
SK_STAGES = ((128, 56), (256, 28), (512, 14), (1024, 7))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", SK_STAGES, ids=name_of)
def test_sk_map_traffic(stage: tuple[int, int], layout: str, dtype: torch.dtype, m: int) -> None:
    """Two branches: 4R+1W forward, 4R+2W backward, to the byte."""
    c, h = stage
    calls = measure("sk", (2, c, h, h), dtype, layout, m=m)
    for direction, (reads, writes) in {"forward": (2 * m, 1), "backward": (m + 2, m)}.items():
        call = calls[direction]
        assert sum(b.load_bytes for b in call.maps.values()) == reads * call.map_bytes
        assert sum(b.store_bytes for b in call.maps.values()) == writes * call.map_bytes
        assert call.passes == call.floors.two_pass.passes
        assert len(call.report.launches) == 3
        for name, buffer in call.maps.items():
            assert buffer.sector_efficiency >= WORST_EFFICIENCY, f"{direction}: {name}"


@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("norm", ["none", "fixed", "batch"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_selective_kernel_moves_what_its_passes_do(
    layout: str, norm: str, prologue: bool
) -> None:
    """The network between the passes is in few launches, and moves no map."""
    calls = measure("sk_block", (4, 64, 9, 9), torch.bfloat16, layout, norm=norm, prologue=prologue)
    for direction, passes, launches in (("forward", 5, 6), ("backward", 6, 8)):
        assert calls[direction].passes == passes
        assert len(calls[direction].report.launches) <= launches


@pytest.mark.parametrize(("m", "act"), [(2, "relu"), (4, "relu"), (2, "silu")])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", SK_STAGES, ids=name_of)
def test_prologue_moves_no_map(stage: tuple[int, int], layout: str, m: int, act: str) -> None:
    """Batch norm and activation of the branches, for which eager writes and reads 2M maps."""
    c, h = stage
    plain, folded = (
        measure("sk", (1, c, h, h), torch.bfloat16, layout, m=m, prologue=p)["forward"]
        for p in ("", act)
    )
    assert folded.passes == plain.passes == 2 * m + 1
    assert folded.floors.eager.passes == plain.floors.eager.passes + 4 * m
    for name, buffer in folded.maps.items():
        assert buffer.sector_efficiency >= WORST_EFFICIENCY, name


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sk_small_traffic_at_training_batch(layout: str) -> None:
    for direction, call in measure("sk", (128, 1024, 7, 7), torch.bfloat16, layout).items():
        share = {k: round(v.bytes / call.map_bytes, 4) for k, v in call.small.items()}
        assert call.small_share <= WORST_SMALL_SHARE, f"{direction}, in maps: {share}"


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", [*SK_STAGES, (24, 9)], ids=name_of)
def test_sk_planner_tells_what_was_counted(stage: tuple[int, int], layout: str, m: int) -> None:
    native = _native.module()
    if native is None:
        pytest.skip(str(_native.why_not_cpu()))
    c, h = stage
    for direction, call in measure("sk", (1, c, h, h), torch.float32, layout, m=m).items():
        planned = native.plan(
            "sk", 1, c, h * h, "float32", layout == "channels_last", direction == "backward",
            {"branches": m},
        )  # fmt: skip
        check_plan(planned, call)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_effective_se_moves_what_se_moves(layout: str) -> None:
    calls = measure("se", (2, 64, 14, 14), torch.bfloat16, layout, rd=0)
    assert (calls["forward"].passes, calls["backward"].passes) == (3, 4)


@pytest.mark.parametrize("rd", [None, 0], ids=["se", "ese"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", [*STAGES, (24, 9)], ids=name_of)
def test_planner_tells_what_was_counted(
    stage: tuple[int, int], layout: str, rd: int | None
) -> None:
    native = _native.module()
    if native is None:
        pytest.skip(str(_native.why_not_cpu()))
    c, h = stage
    if rd == 0 and c > 512:
        pytest.skip("C x C weights take long, and show nothing new")
    rd = reduced(c) if rd is None else rd
    calls = measure("se", (1, c, h, h), torch.float32, layout, rd=rd)
    for direction, call in calls.items():
        planned = native.plan(
            "se", 1, c, h * h, "float32", layout == "channels_last", direction == "backward",
            {"rd": rd},
        )  # fmt: skip
        check_plan(planned, call)


@pytest.mark.parametrize(
    ("block", "options", "problem"),
    [
        ("ese", {"rd": 0}, "no block ese"),
        ("se", {}, "rd must be given"),
        ("se", {"rd": -1}, "rd must not be negative; 0: the gate has one layer"),
        ("se", {"rd": 4, "k": 3}, "se has no option k"),
        ("eca", {"k": 4}, "k must be positive and odd"),
        ("eca", {"k": "three"}, "k must be an integer; got three"),
        ("sk", {"branches": 5}, "there must be 1 to 4 branches"),
        ("sk", {"hidden": -1}, "hidden must not be negative; 0: without the network"),
        ("sk", {"norm": "layer"}, "norm must be none, fixed or batch; got layer"),
    ],
)
def test_planner_says_what_is_wrong(block: str, options: dict[str, Any], problem: str) -> None:
    native = _native.module()
    if native is None:
        pytest.skip(str(_native.why_not_cpu()))
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        native.plan(block, 2, 8, 49, options=options)


@pytest.mark.parametrize("stage", STAGES, ids=name_of)
def test_hidden_channels_are_those_of_timm(stage: tuple[int, int]) -> None:
    timm = pytest.importorskip("timm.layers")
    assert reduced(stage[0]) == STAGES[stage] == timm.SEModule(stage[0]).fc1.out_channels


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
    for name in ("x", "y", "dy", "dx"):
        assert re.search(rf"^ *{name} .*\b[12]\.000$", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--block eca --rd 8", "--rd is an option of the block se"),
        ("--block se --per-channel", "--per-channel is an option of the block eca"),
        ("--block se --branches 3", "--branches is an option of the block sk"),
        ("--block sk_block --branches 5", "--branches must be 1 to 4, got 5"),
        ("--block eca --k 4", "--k must be odd, got 4"),
    ],
)
def test_command_refuses(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traffic", *words.split()]) == 2
    assert message in capsys.readouterr().err
