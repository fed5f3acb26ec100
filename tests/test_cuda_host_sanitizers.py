"""The sanitizers on host-executed kernels: no false alarm, and no known bug is missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cuda_host import blocks, build, mutation
from tests.cuda_host import kernel_zoo as zoo
from tests.cuda_host.blocks import KERNELS
from tests.cuda_host.direct import Process
from tests.cuda_host.kernel_zoo import Fault
from tests.cuda_host.oracle import check_results, inputs_of

pytestmark = [
    pytest.mark.sanitize,
    pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler"),
]


@pytest.fixture(scope="module", params=["asan", "tsan"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


def run(variant: str, *arguments: str) -> tuple[int, str]:
    program: Path = zoo.program(variant)
    command, env = build.sanitized(variant, [str(program), *arguments])
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("order", ["depth", "random"])
def test_correct_kernels_cause_no_report(variant: str, order: str) -> None:
    code, text = run(variant, ",".join(zoo.correct_kernels()), f"order={order}", "counters=1")
    assert code == 0, text
    assert "Sanitizer" not in text


def test_reported_faults_leave_no_trace(variant: str) -> None:
    """Threads that a failed launch abandons on their stacks disturb nothing."""
    broken = [fault.kernel for fault in zoo.faults("FAULT")]
    code, text = run(variant, ",".join(broken))
    assert code == zoo.ERROR, text
    assert "Sanitizer" not in text


@pytest.mark.parametrize("fault", zoo.faults("ASAN"), ids=lambda f: f.kernel)
def test_address_and_undefined_behaviour(fault: Fault) -> None:
    code, text = run("asan", fault.kernel)
    assert code not in (zoo.RIGHT, zoo.WRONG)
    assert fault.text in text
    assert fault.where in text


# Faults of the race check that are no races.
ORDERED = ("stream_of_written", "written_after_stream")


@pytest.mark.parametrize(
    "fault",
    [f for f in zoo.faults("RACE") + zoo.faults("TSAN") if f.kernel not in ORDERED],
    ids=lambda f: f"{f.kernel}-{f.where}",
)
def test_thread_sanitizer_finds_races(fault: Fault) -> None:
    text = ""
    for seed in range(4):  # it remembers four accesses to each eight bytes, so luck is involved
        code, text = run("tsan", fault.kernel, "order=random", f"seed={seed}", "uninitialized=0")
        if "ThreadSanitizer: data race" in text:
            break
    assert "ThreadSanitizer: data race" in text
    assert f" {fault.kernel} " in text, "the report names the kernel"
    assert fault.where.split(":")[0] + ":" in text, "and a line of it"


# ---- the kernels of csrc/ -----------------------------------------------------------------------
@pytest.mark.parametrize("block", KERNELS)
def test_kernels_cause_no_report(variant: str, block: str) -> None:
    orders: list[dict[str, Any]] = [{"order": "random"}]
    if variant == "asan":
        orders += [{"order": "depth"}, {"order": "prio"}]
    # Starting a thread under ThreadSanitizer takes the time that thousands take otherwise.
    left_out = KERNELS[block].many_blocks if variant == "tsan" else ()
    with Process(blocks.build(block, mutation.CSRC, variant), variant) as process:
        for options in orders:
            for problem in KERNELS[block].problems:
                if problem.name in left_out:
                    continue
                outcome = process.run(problem, inputs_of(problem), **options)
                assert outcome.error is None, outcome.error
                check_results(problem, outcome)
        code, text = process.close()
    assert (code, text) == (0, "")


def test_thread_sanitizer_sees_a_deleted_barrier() -> None:
    """Without the runtime's own race check."""
    mutant = next(m for m in mutation.barriers(mutation.CSRC) if m.file.endswith("reduce.cuh"))
    with Process(blocks.build("se", mutant.apply(), "tsan"), "tsan") as process:
        for problem in KERNELS["se"].problems[:2]:  # small planes: they reach the first barrier
            process.run(problem, inputs_of(problem), uninitialized=False, order="random")
        _, text = process.close()
    assert "ThreadSanitizer: data race" in text
    assert "reduce.cuh" in text


def test_operators_under_address_sanitizer() -> None:
    """Through torch, in all types: the operators' own code too."""
    build_first = "from tests.cuda_host import operators; operators.library('asan')"
    subprocess.run([sys.executable, "-c", build_first], cwd=build.ROOT, check=True)
    sizes = "hw25 or hw49 or hw1- or hw361 or hw30 or one or empty"
    some = ["-k", f"test_against_float64 and cuda_host and ({sizes})"]
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command, env = build.sanitized("asan", [*pytest_command, "tests/test_numerics.py", *some])
    env["CHATTN_HOST_VARIANT"] = "asan"
    result = subprocess.run(command, env=env, cwd=build.ROOT, capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "Sanitizer" not in output
    assert " passed" in output
