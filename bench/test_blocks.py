"""Every block: its eager peer, the same under torch.compile, and our backends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.conftest import replay
from chattn_cuda.cli.cases import Row


@pytest.mark.benchmark(timer=replay)
def test_block(run_row: Callable[[Row, str], None], row: Row, implementation: str) -> None:
    run_row(row, implementation)
