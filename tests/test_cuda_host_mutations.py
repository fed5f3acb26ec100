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
def plans(block: str) -> list[tuple[Problem, dict[str, Any]]]:
    with Process(unchanged(block)) as process:
        found = [(problem, process.plan(problem)) for problem in PROBLEMS[block]]
    return [(problem, {**plan, "kind": KINDS[plan["kind"]]}) for problem, plan in found]


def some(block: str, **wanted: Any) -> bool:
    """Whether a problem, or its plan, has all of these; a function is asked."""

    def fits(value: Any, want: Any) -> bool:
        return bool(want(value)) if callable(want) else value == want

    return any(
        all(fits(plan[k] if k in plan else getattr(problem, k), v) for k, v in wanted.items())
        for problem, plan in plans(block)
    )


def several(count: int) -> bool:
    return count > 1


def test_problems_reach_every_path_of_se() -> None:
    reaches = functools.partial(some, "se")
    assert reaches(kind="tiles") and reaches(kind="planes", warps_per_plane=1)
    assert reaches(kind="planes", warps_per_plane=8, reduce_splits=1)
    assert reaches(kind="planes", reduce_splits=2)
    assert reaches(kind="rows", vec=1, reduce_splits=2) and reaches(kind="rows", vec=4)
    for sm in (80, 90):  # without and with clusters
        assert reaches(product_splits=several, output_tiles=several, sm=sm)
        assert reaches(product_splits=several, sample_tiles=several, sm=sm)
    assert reaches(product_splits=1)
    assert reaches(rd=0, kind="tiles") and reaches(rd=0, kind="rows", reduce_splits=several)
    vectors, elements = (lambda c: c % 4 == 0), (lambda c: c % 4)
    assert reaches(tile_samples=8, c=vectors, rd=vectors)
    assert reaches(tile_samples=16, c=vectors, rd=vectors) and reaches(c=elements)
    assert reaches(c=vectors, rd=elements)
    assert reaches(c=lambda c: c > 8 * 128)  # more than one step of a block
    for samples in (8, 16):
        assert reaches(tile_samples=samples, reduce_splits=lambda n: n > 4, c=vectors)
    assert reaches(apply_samples=16, channels_last=True)
    assert reaches(apply_parts=several, channels_last=False)


def test_problems_reach_every_path_of_eca() -> None:
    reaches = functools.partial(some, "eca")
    one_launch = functools.partial(some, "eca", in_one_launch=1)
    assert one_launch(stage_tiles=1)
    for circular in (False, True):
        assert one_launch(stage_tiles=several, cluster=several, sm=90, circular=circular)
        assert one_launch(stage_tiles=several, sm=80, circular=circular)
        assert one_launch(stage_tiles=several, per_channel=circular)
    assert reaches(in_one_launch=0, kind="tiles", taps=lambda k: k > 32, per_channel=False)
    assert reaches(in_one_launch=0, kind="tiles", taps=lambda k: k > 32, per_channel=True)
    assert reaches(in_one_launch=0, kind="planes") and reaches(in_one_launch=0, kind="rows")
    assert reaches(apply_samples=several, in_one_launch=0)
    assert reaches(apply_parts=several, in_one_launch=0)
    assert reaches(grad_splits=several, per_channel=True)
    assert reaches(grad_splits=several, per_channel=False)
    assert reaches(tap_tiles=several)


def test_problems_reach_every_path_of_sk() -> None:
    reaches = functools.partial(some, "sk")
    for m in range(1, 5):
        assert reaches(m=m)
    for slices in (False, True):
        for kind in KINDS:
            assert reaches(kind=kind, slices=slices)
    assert reaches(kind="planes", slices=True, warps_per_plane=1, h=lambda h: h % 2)
    assert reaches(kind="planes", slices=True, warps_per_plane=8)
    assert reaches(kind="planes", reduce_splits=several)
    assert reaches(kind="rows", vec=1, reduce_splits=several) and reaches(kind="rows", vec=4)
    for channels_last in (False, True):
        assert reaches(apply_parts=several, channels_last=channels_last)
        assert reaches(channel_tiles=several, channels_last=channels_last)
        assert reaches(to_mean=False, channels_last=channels_last)
    for problem, plan in plans("sk"):
        if problem.name == "tiles_slices":  # several tiles in a sample, and the last is smaller
            assert problem.c > plan["dot_tile"] and problem.c % plan["dot_tile"]
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
