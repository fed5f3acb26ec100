"""Nothing that is counted may get worse: bench/counted.csv, which the report shows."""

from __future__ import annotations

import pytest

from tests import counted
from tests.cuda_host import build


@pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
def test_counted_figures_are_the_committed_ones() -> None:
    """Better ones, too, have to be written, as a limit for what comes next."""
    changed = counted.differences(counted.rows(), counted.read())
    assert not changed, "\n".join([*changed, "python -m tests.counted --write"])


@pytest.mark.parametrize(
    ("name", "more", "verdict"),
    [("maps", 1, "WORSE"), ("launches", 1, "WORSE"), ("small_bytes", -8, "better")],
)
def test_a_change_is_found(name: str, more: int, verdict: str) -> None:
    before = counted.read()
    now = [dict(row) for row in before]
    now[3][name] = f"{float(now[3][name]) + more:g}"
    (line,) = counted.differences(now, before)
    assert verdict in line and name in line and now[3]["block"] in line


def test_rows_that_come_or_go_are_found() -> None:
    before = counted.read()
    (line,) = counted.differences(before[1:], before)
    assert line.endswith("no longer counted")
    (line,) = counted.differences(before, before[1:])
    assert line.endswith("not in the table")
