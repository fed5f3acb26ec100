"""The tests marked `gpu`, in processes side by side, most valuable first, until time is over.

A plugin of pytest (`-p gpu_tests`) puts a process's share in order, adds every failure as a problem
when it happens, and stops in time. What failed on the first GPU comes first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from gpu_results import emit, left

PART = "GPU_CHECK_PART"  # environment variable: i/n
FIRST = (
    r"trains_like_timm", r"prologue", r"\[sk.*(?:frozen|eval|norm)", r"compile",
    r"against_float64.*\bsk", r"\bsk", r"(?:derivative|gradgrad|double)", r"cuda",
)  # fmt: skip
EVERY = 20  # tests, after which the counts are told
T = TypeVar("T")


# ---- the plugin ---------------------------------------------------------------------------------
def rank(name: str) -> int:
    """Smaller is sooner."""
    triton = len(FIRST) + 1 if "triton" in name and "cuda" not in name else 0
    return triton + next((i for i, p in enumerate(FIRST) if re.search(p, name)), len(FIRST))


def share_of(items: Sequence[T], names: Sequence[str], part: int, parts: int) -> list[T]:
    """A process's share, in order: of each rank a run of neighbours, which use the same kernels."""
    by_rank: dict[int, list[T]] = {}
    for item, name in zip(items, names, strict=True):
        by_rank.setdefault(rank(name), []).append(item)
    found: list[T] = []
    for _, same in sorted(by_rank.items()):
        found += same[len(same) * part // parts : len(same) * (part + 1) // parts]
    return found


class Counts:
    """What came of the tests of this process."""

    def __init__(self) -> None:
        self.part, self.parts = map(int, os.environ.get(PART, "0/1").split("/"))
        self.of = {"collected": 0, "passed": 0, "failed": 0, "skipped": 0}

    def tell(self) -> None:
        """Add them as a record."""
        emit("tests", part=self.part, **self.of)


counts = Counts()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Keep a share, in order."""
    marked = [item for item in items if item.get_closest_marker("gpu") is not None]
    items[:] = share_of(marked, [item.nodeid for item in marked], counts.part, counts.parts)
    counts.of["collected"] = len(items)
    counts.tell()


def pytest_collectreport(report: Any) -> None:
    """A file that cannot be imported is a problem of the first process's."""
    if report.failed and counts.part == 0:
        emit("problem", step="tests", text=f"{report.nodeid}: {_message(report)}")


def _message(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join((crash.message if crash else str(report.longrepr)).split())[:160]


def pytest_runtest_logreport(report: Any) -> None:
    """Count a test once: by its call, or by what came before it."""
    if report.when == "teardown" and not report.failed:
        return
    if report.when == "setup" and report.passed:
        return
    if report.when == "teardown":  # it has passed and been counted
        counts.of["passed"] -= 1
    counts.of[report.outcome] += 1
    if report.failed:
        name = report.nodeid.removeprefix("tests/")
        emit("problem", step="tests", text=f"{name}: {_message(report)}")
    if sum(counts.of.values()) % EVERY == 0:
        counts.tell()


def pytest_runtest_logfinish(nodeid: str, location: object) -> None:
    """Stop in time."""
    if left() < 1 and (session := _sessions.get("session")):
        session.shouldstop = "no time left"


_sessions: dict[str, Any] = {}


def pytest_sessionstart(session: Any) -> None:
    """Remember what can be stopped."""
    _sessions["session"] = session


def pytest_sessionfinish(session: Any) -> None:
    """Tell the counts."""
    counts.tell()


# ---- the step -----------------------------------------------------------------------------------
def step(rehearse: bool) -> int:
    """All parts."""
    root = Path(__file__).resolve().parent.parent
    parts = 1 if rehearse else max(1, min(12, (os.cpu_count() or 1) - 3))
    # In a rehearsal they are collected and skipped: there is no GPU.
    command = [
        *(sys.executable, "-m", "pytest", "tests", "-q", "-m", "gpu", "-p", "gpu_tests"),
        *("-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"),
    ]
    processes = [
        subprocess.Popen(command, cwd=root, env={**os.environ, PART: f"{i}/{parts}"})
        for i in range(parts)
    ]
    codes = [process.wait() for process in processes]  # the runner ends those that hang
    print(f"RESULT {parts} processes, exit codes {sorted(set(codes))}")
    bad = set(codes) - {0, 1, 2, 5}  # failures are problems; 2: stopped; 5: no tests
    return 1 if bad else 124 if 2 in codes else 0
