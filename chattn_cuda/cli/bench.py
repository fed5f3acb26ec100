"""``python -m chattn_cuda bench``: the blocks against eager PyTorch and torch.compile."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path

import torch

from chattn_cuda.cli import chart, report
from chattn_cuda.cli.cases import BLOCKS, COMPILE, DIRECTIONS, EAGER, LAYOUTS, fused_backends, rows
from chattn_cuda.cli.environment import environment
from chattn_cuda.cli.measure import measure
from chattn_cuda.cli.report import Report
from chattn_cuda.cli.terminal import Terminal, UsageError, require

__all__ = ["add_arguments", "default_device", "default_dtypes", "finish", "quiet", "run"]

_SECONDS = 3.0
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``bench``."""
    parser.add_argument("--block", choices=tuple(BLOCKS), action="append", help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where usable")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        action="append",
        help="default: float32; on a GPU also the 16-bit types",
    )
    parser.add_argument("--layout", choices=tuple(LAYOUTS), action="append", help="default: both")
    parser.add_argument("--direction", choices=DIRECTIONS, action="append", help="default: both")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="per row (default: 3)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--results", type=Path, metavar="DIR", help="write CSV and JSON there")
    add_report_arguments(parser)
    parser.add_argument(
        "--read", type=Path, metavar="JSON", help="show this report, measure nothing"
    )


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say where a report goes."""
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the README's tables")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart (.png or .svg)")


def default_device() -> str:
    """Returns "cuda" where a backend with kernels can run there, else "cpu"."""
    return "cuda" if torch.cuda.is_available() and fused_backends("cuda") else "cpu"


def default_dtypes(device: str) -> tuple[torch.dtype, ...]:
    """What is worth measuring: on a GPU also the 16-bit types."""
    more = (torch.float16, torch.bfloat16) if device == "cuda" else ()
    return (torch.float32, *more)


def quiet() -> None:
    """Keep torch.compile's remarks about a missing CUDA toolkit off the terminal."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write; returns the exit code."""
    terminal = Terminal()
    if arguments.read:
        try:
            loaded = report.read(arguments.read)
        except (OSError, ValueError) as error:
            raise UsageError(f"--read: {error}") from error
        return finish(terminal, loaded, None, arguments.markdown, arguments.chart)
    quiet()
    if arguments.threads is not None:
        set_threads(arguments.threads)
    device = arguments.device or default_device()
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device")
    if not fused_backends(device):
        raise UsageError(f"no backend with kernels runs on {device}: python -m chattn_cuda doctor")
    blocks = arguments.block or list(BLOCKS)
    require("bench", [BLOCKS[b].library for b in blocks])
    if arguments.chart:
        require("--chart", ("matplotlib",))
    dtypes = [getattr(torch, d) for d in arguments.dtype or ()] or default_dtypes(device)
    layouts = arguments.layout or tuple(LAYOUTS)
    directions = arguments.direction or DIRECTIONS
    todo = [row for b in blocks for row in rows(b, device, dtypes, layouts, directions)]
    compiled = () if arguments.no_compile else (COMPILE,)
    implementations = (EAGER, *compiled, *fused_backends(device))
    conditions = environment(device)
    terminal.line(conditions.line())
    results = []
    with terminal.steps(len(todo)) as steps:
        for row in todo:
            steps.begin(row.id)
            results.append(measure(row, implementations, seconds=arguments.seconds))
    finished = Report(results, conditions, command(arguments))
    return finish(terminal, finished, arguments.results, arguments.markdown, arguments.chart)


def finish(
    terminal: Terminal,
    finished: Report,
    folder: Path | None,
    markdown: Path | None,
    picture: Path | None,
) -> int:
    """Print a report and write its files.

    Args:
        terminal: Where to print.
        finished: The report.
        folder: For CSV and JSON, or None.
        markdown: File for the Markdown tables, or None.
        picture: File for the chart, or None.

    Returns:
        The exit code: 1 where a result was wrong.
    """
    for table in finished.tables():
        terminal.table(table)
    terminal.line(finished.environment.line())
    note = finished.noise()
    if note:
        terminal.line(note, "yellow")
    for line in finished.problems():
        terminal.line(line, "bold red")
    written = finished.write(folder) if folder else []
    if markdown:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(finished.markdown())
        written.append(markdown)
    if picture:
        title = ", ".join(dict.fromkeys(BLOCKS[r.row.block].title for r in finished.results))
        written.append(chart.draw(picture, finished.panels(), title, finished.environment.line()))
    for path in written:
        terminal.line(f"wrote {path}")
    return 1 if finished.wrong() else 0


def set_threads(count: int) -> None:
    """Let torch use ``count`` CPU threads.

    Raises:
        UsageError: ``count`` is below 1.
    """
    if count < 1:
        raise UsageError(f"--threads must be at least 1, got {count}")
    torch.set_num_threads(count)


def command(arguments: argparse.Namespace) -> str:
    """The command line that measures the same again."""
    words = ["python", "-m", "chattn_cuda", "bench"]
    for name in ("block", "device", "dtype", "layout", "direction", "threads"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name}={v}" for v in (value if isinstance(value, list) else [value])]
    if arguments.seconds != _SECONDS:
        words.append(f"--seconds={arguments.seconds:g}")
    if arguments.no_compile:
        words.append("--no-compile")
    return shlex.join(words)
