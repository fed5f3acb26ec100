"""The checks notice bugs: every barrier of csrc/ is deleted in turn, launches change places, and
typical bugs are planted. Each must turn a check red, with a message that says where.

The list of barriers is found in the sources, so a new one is covered on the day it is written.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chattn_cuda import reference
from tests.compare import assert_close
from tests.cuda_host import build, direct, kernel_zoo, mutation
from tests.cuda_host.direct import PROBLEMS, Outcome, Plan, Problem, Process
from tests.cuda_host.mutation import Mutant

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

INPUTS = ("x", "dy", "w1", "b1", "w2", "b2")
# In this order: what explains most comes first.
CHECKS: tuple[dict[str, Any], ...] = (
    {"races": True},
    {"counters": True},
    {"order": "reverse"},
    {"order": "random", "races": True},
    {"order": "prio", "seed": 2},
)
# Neighbouring launches of which neither needs the other.
INDEPENDENT = {("se_weight_grads", "se_gradient"), ("se_weight_grads", "se_gradient_max")}


# ---- one problem --------------------------------------------------------------------------------
@functools.cache
def inputs_of(problem: Problem) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {k: torch.randn(problem.shapes[k], generator=generator) for k in INPUTS}
    tensors["w1"] /= problem.c**0.5
    tensors["w2"] /= problem.rd**0.5
    return tensors


@functools.cache
def results(problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """By the formulas; float64 for the exact value, float32 for the yardstick."""
    leaves = {k: v.to(dtype).requires_grad_(k != "dy") for k, v in inputs_of(problem).items()}
    x, dy, w1, b1, w2, b2 = leaves.values()
    silu = torch.nn.functional.silu
    y, gate = reference.squeeze_excite(x, w1, b1, w2, b2, silu, add_maxpool=problem.add_maxpool)
    pooled, peak = x.mean((2, 3)), x.amax((2, 3))
    if problem.add_maxpool:
        pooled = 0.5 * pooled + 0.5 * peak
    grads = torch.autograd.grad(y, [x, w1, b1, w2, b2], dy)
    gradients = dict(zip(("dx", "dw1", "db1", "dw2", "db2"), grads, strict=True))
    small = {"pooled": pooled, "peak": peak, "hidden": pooled @ w1.T + b1, "gate": gate}
    return {**small, "y": y, **gradients}


def check_results(problem: Problem, outcome: Outcome) -> None:
    exact, eager = results(problem, torch.float64), results(problem, torch.float32)
    # In the order in which they are computed: the first wrong one is nearest to the cause.
    for name in (n for n in exact if n in outcome.arrays):
        actual = outcome.arrays[name]
        assert_close(name, actual, exact[name], eager[name], dtype=torch.float32)


def check_traffic(problem: Problem, outcome: Outcome) -> None:
    """The maps move as often as docs/design.md says, to the byte."""
    assert outcome.forward is not None and outcome.backward is not None
    expected = {
        "se_forward": (outcome.forward, {"x": 2}, {"y": 1}),
        "se_backward": (outcome.backward, {"dy": 2, "x": 1 + problem.add_maxpool}, {"dx": 1}),
    }
    for op, (report, loads, stores) in expected.items():
        for name, maps in loads.items():
            moved, wanted = report.buffers[name].load_bytes, maps * problem.map_bytes
            assert moved == wanted, f"{op}: {name}: {moved} bytes loaded, expected {wanted}"
        for name, maps in stores.items():
            moved, wanted = report.buffers[name].store_bytes, maps * problem.map_bytes
            assert moved == wanted, f"{op}: {name}: {moved} bytes stored, expected {wanted}"


def complaint(process: Process, problem: Problem, **options: Any) -> str | None:
    """What a check says of a library, or None."""
    outcome = process.run(problem, inputs_of(problem), **options)
    if outcome.error is not None:
        return outcome.error
    try:
        check_results(problem, outcome)
        if options.get("counters"):
            check_traffic(problem, outcome)
    except AssertionError as e:
        return str(e)
    return None


def complaints(library: Path) -> Iterator[str]:
    """What all checks say."""
    # A process of its own for each: one that crashed answers no more.
    with Process(library) as process:
        for options in CHECKS:
            for problem in PROBLEMS:
                text = complaint(process, problem, **options)
                if text is not None:
                    yield f"{problem.name}, {options}: {text}"


# ---- the control --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def unchanged() -> Path:
    return direct.build(mutation.CSRC)


def test_unchanged_sources_pass(unchanged: Path) -> None:
    assert list(complaints(unchanged)) == []


def test_problems_reach_every_path(unchanged: Path) -> None:
    with Process(unchanged) as process:
        plans = {p: process.plan(p) for p in PROBLEMS}

    def some(predicate: Any) -> bool:
        return any(predicate(problem, plan) for problem, plan in plans.items())

    def reduces(kind: str, **fields: int) -> bool:
        def fits(_: Problem, plan: Plan) -> bool:
            return plan.kind == kind and all(getattr(plan, k) == v for k, v in fields.items())

        return some(fits)

    assert reduces("tiles") and reduces("planes", warps_per_plane=1)
    assert reduces("planes", warps_per_plane=8, reduce_splits=1)
    assert reduces("planes", reduce_splits=2)
    assert reduces("rows", vec=1, reduce_splits=2) and reduces("rows", vec=4)
    for kind in ("tiles", "planes", "rows"):
        assert some(lambda problem, plan, k=kind: plan.kind == k and problem.add_maxpool)
    assert some(lambda _, plan: plan.contract_splits > 1 and plan.hidden_tiles > 1)
    assert some(lambda _, plan: plan.contract_splits > 1 and plan.contract_wide == 1)
    assert some(lambda _, plan: plan.contract_splits == 1)
    assert some(lambda problem, plan: plan.sample_tiles > 2 and not problem.channels_last)
    assert some(lambda problem, plan: plan.apply_samples == 16 and problem.channels_last)
    assert some(lambda problem, plan: plan.apply_parts > 1 and not problem.channels_last)


# ---- barriers -----------------------------------------------------------------------------------
def name_of(mutant: Mutant) -> str:
    return mutant.name


def require_noticed(mutant: Mutant) -> None:
    library = direct.build(mutant.apply(), "quick")
    text = next(complaints(library), None)
    assert text is not None, f"no check noticed: {mutant.name}"
    assert re.search(mutant.noticed, text), f"noticed, but not by {mutant.noticed!r}: {text}"


@pytest.fixture(scope="module", autouse=True)
def _clean() -> None:
    mutation.remove_old_copies()


def test_barriers_are_found() -> None:
    files = {m.file for m in mutation.barriers(mutation.CSRC)}
    assert {"engine/cuda/reduce.cuh", "engine/cuda/apply.cuh", "engine/cuda/matmul.cuh"} <= files


@pytest.mark.sanitize
@pytest.mark.parametrize("mutant", mutation.barriers(mutation.CSRC), ids=name_of)
def test_deleted_barrier(mutant: Mutant) -> None:
    require_noticed(mutant)


@pytest.mark.sanitize
@pytest.mark.parametrize("mutant", mutation.BUGS, ids=name_of)
def test_planted_bug(mutant: Mutant) -> None:
    require_noticed(mutant)


# ---- the order of launches ----------------------------------------------------------------------
@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[1], PROBLEMS[5]], ids=lambda p: p.name)
def test_launches_that_change_places(unchanged: Path, problem: Problem) -> None:
    """Each launch needs the one before it, or both are known to be independent."""
    with Process(unchanged) as process:
        outcome = process.run(problem, inputs_of(problem))
        for direction in direct.DIRECTIONS:
            names = [launch.kernel for launch in getattr(outcome, direction).launches]
            assert len(names) >= 3
            for number in range(len(names)):  # the last one has no successor, and never runs
                text = complaint(process, problem, to=(direction,), delay=number)
                pair = tuple(names[number : number + 2])
                if pair in INDEPENDENT:
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
@pytest.mark.parametrize("mutant", [*ZOO_BARRIERS, *mutation.ZOO_BUGS], ids=name_of)
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
