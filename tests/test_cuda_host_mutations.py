"""The checks notice bugs: every barrier of csrc/ is deleted in turn, launches change places, and
typical bugs are planted. Each must turn a check red, with a message that says where.

The list of barriers is found in the sources, so a new one is covered on the day it is written.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cuda_host import blocks, build, kernel_zoo, mutation
from tests.cuda_host.blocks import KERNELS, PROBLEMS
from tests.cuda_host.bugs import engine, zoo
from tests.cuda_host.direct import Process
from tests.cuda_host.mutation import Mutant
from tests.cuda_host.oracle import complaint, inputs_of
from tests.cuda_host.problems import KINDS, Problem

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

# In this order: what explains most comes first.
CHECKS: tuple[dict[str, Any], ...] = (
    {"races": True},
    {"counters": True},
    {"order": "reverse"},
    {"order": "random", "races": True},
    {"order": "prio", "seed": 2},
)
BUGS = (*engine.BUGS, *blocks.BUGS)


def complaints(block: str, library: Path) -> Iterator[str]:
    """What all checks say."""
    # A process of its own for each: one that crashed answers no more.
    with Process(library) as process:
        for options in CHECKS:
            for problem in PROBLEMS[block]:
                text = complaint(process, problem, **options)
                if text is not None:
                    yield f"{problem.name}, {options}: {text}"


# ---- the control --------------------------------------------------------------------------------
@functools.cache
def unchanged(block: str) -> Path:
    return blocks.build(block, mutation.CSRC)


@pytest.mark.parametrize("block", PROBLEMS)
def test_unchanged_sources_pass(block: str) -> None:
    assert list(complaints(block, unchanged(block))) == []


@functools.cache
def planned(block: str) -> list[tuple[Problem, dict[str, dict[str, int]]]]:
    with Process(unchanged(block)) as process:
        return [(problem, process.plan(problem)) for problem in PROBLEMS[block]]


def some(operator: str, **wanted: Any) -> bool:
    """Whether a problem, or the operator's plan of it, has all of these; a function is asked."""

    def fits(value: Any, want: Any) -> bool:
        return bool(want(value)) if callable(want) else value == want

    def value(problem: Problem, plan: dict[str, int], name: str) -> Any:
        if name not in plan:
            return getattr(problem, name)
        return KINDS[plan[name]] if name.endswith("kind") else plan[name]

    return any(
        all(fits(value(problem, plans[operator], k), v) for k, v in wanted.items())
        for problem, plans in planned(operator.split("_")[0])
    )


def several(count: int) -> bool:
    return count > 1


def test_problems_reach_every_path_of_se() -> None:
    reaches = functools.partial(some, "se_forward")
    assert reaches(reduce_kind="tiles") and reaches(reduce_kind="planes", reduce_warps_per_plane=1)
    assert reaches(reduce_kind="planes", reduce_warps_per_plane=8, reduce_splits=1)
    assert reaches(reduce_kind="planes", reduce_splits=2)
    assert reaches(reduce_kind="rows", reduce_vec=1, reduce_splits=2) and reaches(
        reduce_kind="rows", reduce_vec=4
    )
    for sm in (80, 90):  # without and with clusters
        assert reaches(product_splits=several, product_output_tiles=several, sm=sm)
        assert reaches(product_splits=several, product_sample_tiles=several, sm=sm)
    assert reaches(product_splits=1)
    assert reaches(rd=0, reduce_kind="tiles") and reaches(
        rd=0, reduce_kind="rows", reduce_splits=several
    )
    vectors, elements = (lambda c: c % 4 == 0), (lambda c: c % 4)
    assert reaches(product_samples=8, c=vectors, rd=vectors)
    assert reaches(product_samples=16, c=vectors, rd=vectors) and reaches(c=elements)
    assert reaches(c=vectors, rd=elements)
    assert reaches(c=lambda c: c > 8 * 128)  # more than one step of a block
    for samples in (8, 16):
        assert reaches(product_samples=samples, reduce_splits=lambda n: n > 4, c=vectors)
    assert reaches(apply_samples=16, channels_last=True)
    assert reaches(apply_parts=several, channels_last=False)


def test_problems_reach_every_path_of_eca() -> None:
    reaches = functools.partial(some, "eca_forward")
    one_launch = functools.partial(some, "eca_forward", stage_fits=1)
    assert one_launch(stage_tiles=1)
    for circular in (False, True):
        assert one_launch(stage_tiles=several, stage_cluster=several, sm=90, circular=circular)
        assert one_launch(stage_tiles=several, sm=80, circular=circular)
        assert one_launch(stage_tiles=several, per_channel=circular)
    assert reaches(stage_fits=0, reduce_kind="tiles", taps=lambda k: k > 32, per_channel=False)
    assert reaches(stage_fits=0, reduce_kind="tiles", taps=lambda k: k > 32, per_channel=True)
    assert reaches(stage_fits=0, reduce_kind="planes") and reaches(stage_fits=0, reduce_kind="rows")
    assert reaches(apply_samples=several, stage_fits=0)
    assert reaches(apply_parts=several, stage_fits=0)
    assert reaches(grad_splits=several, per_channel=True)
    assert reaches(grad_splits=several, per_channel=False)
    assert reaches(grad_tap_tiles=several)


def test_problems_reach_every_path_of_sk() -> None:
    squeezes = functools.partial(some, "sk_squeeze")
    selects = functools.partial(some, "sk_select")
    for m in range(1, 5):
        assert squeezes(m=m)
    for slices in (False, True):
        for kind in KINDS:
            assert squeezes(kind=kind, slices=slices)
    assert squeezes(kind="planes", slices=True, warps_per_plane=1, h=lambda h: h % 2)
    assert squeezes(kind="planes", slices=True, warps_per_plane=8)
    assert squeezes(kind="planes", splits=several)
    assert squeezes(kind="rows", vec=1, splits=several) and squeezes(kind="rows", vec=4)
    for channels_last in (False, True):
        assert selects(parts=several, channels_last=channels_last)
        assert selects(channel_tiles=several, channels_last=channels_last)
        assert selects(to_mean=False, channels_last=channels_last)
    for problem, plans in planned("sk"):
        if problem.name == "tiles_slices":  # several tiles in a sample, and the last is smaller
            tile = plans["sk_dot"]["tile_planes"]
            assert problem.c > tile and problem.c % tile
    assert any(problem.n * problem.c > 256 for problem in PROBLEMS["sk"])  # two blocks of planes


# ---- barriers -----------------------------------------------------------------------------------
def name_of(mutant: Mutant) -> str:
    return mutant.name


def require_noticed(mutant: Mutant) -> None:
    block = blocks.shown_by(mutant)
    text = next(complaints(block, blocks.build(block, mutant.apply(), "quick")), None)
    assert text is not None, f"no check noticed: {mutant.name}"
    assert re.search(mutant.noticed, text), f"noticed, but not by {mutant.noticed!r}: {text}"


@pytest.fixture(scope="module", autouse=True)
def _clean() -> None:
    mutation.remove_old_copies()


BARRIERS = mutation.barriers(mutation.CSRC)
# Once more in the kernels with several inputs or outputs, which are instantiations of their own.
OF_BRANCHES = [
    dataclasses.replace(mutant, name=f"sk-{mutant.name}", shown_by="sk")
    for mutant in BARRIERS
    if mutant.file in ("engine/cuda/reduce.cuh", "engine/cuda/apply.cuh")
]


def test_barriers_are_found() -> None:
    found = {m.file: blocks.shown_by(m) for m in BARRIERS}
    engine = ("reduce", "apply", "tile_product", "arrival")
    assert {f"engine/cuda/{name}.cuh" for name in engine} <= set(found)
    assert found["engine/cuda/tile_product.cuh"] == "se"
    assert found["blocks/eca/stage.cuh"] == found["blocks/eca/gate.cuh"] == "eca"
    assert len(OF_BRANCHES) >= 5


def test_bugs_are_of_these_sources() -> None:
    """Without building any: the texts that they replace are there, each once."""
    for mutant in (*BUGS, *zoo.BUGS):
        assert mutant.text() != (mutant.tree / mutant.file).read_text()


@pytest.mark.sanitize
@pytest.mark.parametrize("mutant", [*BARRIERS, *OF_BRANCHES], ids=name_of)
def test_deleted_barrier(mutant: Mutant) -> None:
    require_noticed(mutant)


@pytest.mark.sanitize
@pytest.mark.parametrize("mutant", BUGS, ids=name_of)
def test_planted_bug(mutant: Mutant) -> None:
    require_noticed(mutant)


# ---- the order of launches ----------------------------------------------------------------------
ORDERED = [
    problem
    for kernels in KERNELS.values()
    for problem in kernels.problems
    if problem.name in kernels.ordered
]


@pytest.mark.parametrize("problem", ORDERED, ids=lambda p: f"{p.block}-{p.name}")
def test_launches_that_change_places(problem: Problem) -> None:
    """Each launch needs the one before it, or both are known to be independent."""
    with Process(unchanged(problem.block)) as process:
        outcome = process.run(problem, inputs_of(problem))
        for direction, report in outcome.reports.items():
            names = [launch.kernel for launch in report.launches]
            assert len(names) >= 2
            for number in range(len(names)):  # the last one has no successor, and never runs
                text = complaint(process, problem, to=(direction,), delay=number)
                pair = tuple(names[number : number + 2])
                if pair in KERNELS[problem.block].independent:
                    assert text is None, f"{pair} are not independent: {text}"
                else:
                    assert text is not None, f"no check noticed the order of {pair}"
                    assert re.search(rf"{mutation.PLACE}|no kernel wrote", text), text


# ---- the zoo ------------------------------------------------------------------------------------
# Its barrier orders nothing: it shows that threads which left do not hold up the others.
ZOO_BARRIERS = [
    m
    for m in mutation.barriers(mutation.ZOO, "correct.cu")
    if "early_exit" not in m.text()[: m.offset].rpartition("CHATTN_KERNEL")[2]
]


@pytest.mark.sanitize
@pytest.mark.parametrize("mutant", [*ZOO_BARRIERS, *zoo.BUGS], ids=name_of)
def test_mutant_of_the_zoo(mutant: Mutant) -> None:
    folder = mutant.apply()
    program = build.build_program(
        "zoo_mutant",
        [folder / mutant.file, kernel_zoo.FOLDER / "zoo.cpp"],
        variant="quick",
        defines=["CHATTN_ZOO_MAIN"],
    )
    names = ",".join(kernel_zoo.correct_kernels())
    text = ""
    for options in (["races=1"], [], ["order=reverse"], ["order=random", "races=1"]):
        result = subprocess.run([program, names, *options], capture_output=True, text=True)
        text += result.stdout + result.stderr
        if result.returncode != kernel_zoo.RIGHT:
            assert re.search(mutant.noticed, text), text
            return
    raise AssertionError(f"no check noticed: {mutant.name}")
