"""Shared set-up of the benchmark: rows, measuring, the tables at the end.

All implementations of a row are measured together, in turn and round by round, so that they meet
the same machine (chattn_cuda.cli.measure). Each test then hands the samples of one implementation
to pytest-benchmark through `Replay`, a timer that tells them again: its tables and files hold the
same figures as the summary.
"""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from chattn_cuda.cli.bench import default_device, default_dtypes, finish, quiet
from chattn_cuda.cli.cases import BLOCKS, COMPILE, EAGER, Row, fused_backends, rows
from chattn_cuda.cli.environment import environment
from chattn_cuda.cli.measure import Entry, Result, measure
from chattn_cuda.cli.report import Report
from chattn_cuda.cli.terminal import Terminal

SECONDS = 3.0
OF_TAILS = 1 / 3
RESULTS = Path(__file__).parent / "results"


class Replay:
    """A timer for pytest-benchmark that tells measured durations."""

    def __init__(self) -> None:
        self._times: Iterator[float] = iter(())

    def load(self, seconds: list[float]) -> None:
        self._times = itertools.chain.from_iterable((0.0, s) for s in seconds)

    def __call__(self) -> float:
        return next(self._times, time.perf_counter())


replay = Replay()
results: dict[Row, Result] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chattn_cuda")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda where usable")
    group.addoption(
        "--seconds",
        type=float,
        default=SECONDS,
        help="for the rounds of a row (3; a third for tails)",
    )
    group.addoption("--threads", type=int, help="CPU threads (default: torch's own)")
    group.addoption("--results", type=Path, default=RESULTS, metavar="DIR", help="for CSV and JSON")
    group.addoption("--markdown", type=Path, metavar="FILE", help="write the README's tables")
    group.addoption("--chart", type=Path, metavar="FILE", help="draw a chart (.png or .svg)")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.threads is not None:
        torch.set_num_threads(config.option.threads)
    # The summary below shows each row once; pytest-benchmark's own table is there on request.
    if not any(str(a).startswith("--benchmark-") for a in config.invocation_params.args):
        config.option.benchmark_quiet = True
    quiet()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise with the rows of the blocks, without relatives, and with implementations."""
    if "row" not in metafunc.fixturenames:
        return
    device = metafunc.config.option.device or default_device()
    blocks = sorted(name for name, block in BLOCKS.items() if not block.relative)
    found = [row for name in blocks for row in rows(name, device, default_dtypes(device))]
    pairs = [(row, name) for row in found for name in implementations(row)]
    ids = [f"{row.id}-{name}" for row, name in pairs]
    metafunc.parametrize(("row", "implementation"), pairs, ids=ids)


def implementations(row: Row) -> tuple[str, ...]:
    """What is measured of a row."""
    compiled = (COMPILE,) if BLOCKS[row.block].compiled else ()
    return EAGER, *compiled, *fused_backends(row.device)


@pytest.fixture
def run_row(benchmark, request: pytest.FixtureRequest) -> Callable[[Row, str], None]:
    """Measures a row, the first time it is asked for, and reports one implementation of it."""

    def run(row: Row, implementation: str) -> None:
        pytest.importorskip(BLOCKS[row.block].library)
        if row not in results:
            seconds = request.config.option.seconds
            if BLOCKS[row.block].fuse == "tail":  # of which there are many
                seconds *= OF_TAILS
            results[row] = measure(row, implementations(row), seconds=seconds)
        result = results[row]
        entry = result.entries[implementation]
        if entry.unavailable:
            pytest.skip(f"{implementation} could not run: {entry.unavailable}")
        if entry.wrong and implementation == COMPILE:  # another's fault, and no time is shown
            pytest.skip(f"{implementation} is wrong: {entry.wrong}")
        report(benchmark, result, implementation, entry)

    return run


def report(benchmark, result: Result, implementation: str, entry: Entry) -> None:
    benchmark.group = result.row.id
    benchmark.extra_info.update(
        max_error=entry.error,
        vs_eager=result.ratio(EAGER, implementation),
        vs_compile=result.ratio(COMPILE, implementation),
    )
    assert entry.wrong is None, entry.wrong
    replay.load([ms / 1e3 for ms in entry.samples])
    benchmark.pedantic(lambda: None, rounds=len(entry.samples))


def command(config: pytest.Config) -> str:
    """What measures the same again; without the options that say where results go."""
    words = ["python", "-m", "pytest", "bench"]
    options = config.option
    words += [f"--{n}={getattr(options, n)}" for n in ("device", "threads") if getattr(options, n)]
    words += [f"--seconds={options.seconds:g}"] if options.seconds != SECONDS else []
    words += ["-k", options.keyword] if options.keyword else []
    return shlex.join(words)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not results:
        return
    device = next(iter(results)).device
    done = Report(list(results.values()), environment(device), command(config))
    terminalreporter.ensure_newline()
    with config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        options = config.option
        finish(Terminal(), done, options.results, options.markdown, options.chart)
