"""The sanitizers work on host-executed kernels: no false alarm, and no known bug is missed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cuda_host import build
from tests.cuda_host import kernel_zoo as zoo
from tests.cuda_host.kernel_zoo import Fault

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")


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


@pytest.mark.parametrize(
    "fault",
    [f for f in zoo.faults("RACE") + zoo.faults("TSAN") if f.kernel != "stream_of_written"],
    ids=lambda f: f"{f.kernel}-{f.where}",
)
def test_thread_sanitizer_finds_races(fault: Fault) -> None:
    text = ""
    for seed in range(4):  # it remembers four accesses to each eight bytes, so luck is involved
        code, text = run("tsan", fault.kernel, "order=random", f"seed={seed}")
        if "ThreadSanitizer: data race" in text:
            break
    assert "ThreadSanitizer: data race" in text
    assert f" {fault.kernel} " in text, "the report names the kernel"
    assert fault.where.split(":")[0] + ":" in text, "and a line of it"
