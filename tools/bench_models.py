"""Whole models: eager PyTorch, accelerated, compiled, and both, in at most 25 minutes on two cores.

    make bench-models                          or: python tools/bench_models.py
    python tools/bench_models.py --quick       two models, small images, no compiler: a minute
    python tools/bench_models.py --models seresnet50,skresnet50 --only "inference, batch 1"
    python tools/bench_models.py --show        the last figures, from bench/results

Inference at batch 1 and 8, training (forward, loss, backward) at batch 8, in both memory formats,
float32. A row's variants are measured in turn, round by round, in one process. First comes every
row without a compiler; then, as long as there is time, each row again with the compiled models:
inference first, which compiles fastest. What was left is listed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gpu_results
from gpu_results import Record, Times, emit, left, read
from gpu_summary import BASELINES, means, number, slower
from gpu_tables import row_tables

if TYPE_CHECKING:
    from variants import Subject

TABLE = "models"
NAMES = (
    "seresnet50", "efficientnet_b0", "skresnet50", "ecaresnet50d", "mobilenetv3_large_100",
    "regnety_032",
)  # fmt: skip
LAYOUTS = ("channels_last", "nchw")
WORK = ((False, 8), (False, 1), (True, 8))  # training, batch
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
MINUTES = 25.0
SECTION = "whole models"  # of documents
# Seconds that a model may take torch.compile until one has shown how long it takes.
EXPECTED = {False: 60.0, True: 150.0}


@dataclass(frozen=True)
class Row:
    """A network and what is done with it."""

    name: str
    training: bool
    batch: int
    layout: str

    def __str__(self) -> str:
        return f"{self.name} {self.work}"

    @property
    def work(self) -> str:
        """What is done, without the network."""
        return f"{'training' if self.training else 'inference'}, batch {self.batch}, {self.layout}"


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
        side: Height and width of the images.
        compiler: Whether torch.compile is measured, too.
        seconds: For the rounds of a row.
        options: For timm.create_model.
        backend: For `accelerate`.
        fuse: For `accelerate`.
    """

    names: Sequence[str] = NAMES
    side: int = 224
    compiler: bool = True
    seconds: float = 4.0
    options: tuple[tuple[str, object], ...] = ()
    backend: str = "auto"
    fuse: str = "tail"


QUICK = Plan(NAMES[:2], 96, False, 0.5)


def rows(names: Iterable[str], only: Iterable[str] = ()) -> list[Row]:
    """All rows in which each of the words ``only`` occurs, the most valuable ones first."""
    combinations = itertools.product(WORK, LAYOUTS, names)
    found = [Row(name, *work, layout) for work, layout, name in combinations]
    return [row for row in found if all(word in str(row) for word in only)]


# ---- measuring ----------------------------------------------------------------------------------
def subject(row: Row, plan: Plan) -> Subject:
    """The row's network, and how it is called."""
    import torch
    from torch import nn
    from variants import Subject, device, network

    formats = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
    layout = formats[row.layout]
    model = network(row.name, row.training, layout, **dict(plan.options))
    x = torch.randn(row.batch, 3, plan.side, plan.side, device=device())
    x = x.contiguous(memory_format=layout)

    def call(module: nn.Module) -> list[torch.Tensor]:
        if not row.training:
            with torch.inference_mode():
                return [module(x)]
        loss = module(x).square().mean()
        loss.backward()
        module.zero_grad(set_to_none=True)
        return [loss]

    how = (model, call, x.nbytes, 60, 1, plan.backend, plan.fuse)
    return Subject(TABLE, str(row), "ms", *how)


def measure_all(found: Sequence[Row], plan: Plan) -> None:
    """Add a record for every row, and another for those for whose compilation there is time."""
    import torch
    from variants import BOTH, COMPILED, EAGER, OURS, make_ready, measure

    for i, row in enumerate(found, 1):
        if left() < 10:
            return
        print(f"[{i}/{len(found)}] {row}", flush=True)
        of_row = subject(row, plan)
        measure(of_row, make_ready(of_row, (EAGER, OURS)), plan.seconds)
    longest: dict[bool, float] = {}
    for row in found if plan.compiler else ():
        needed = longest.get(row.training, EXPECTED[row.training])
        if left() < 1.2 * needed + plan.seconds:
            continue  # another kind of row may take less
        print(f"{row}, compiled; {left() / 60:.0f} minutes left", flush=True)
        torch._dynamo.reset()  # code of earlier rows would count against its limits
        start = time.monotonic()
        of_row = subject(row, plan)
        made = make_ready(of_row, (EAGER, OURS, COMPILED, BOTH))
        longest[row.training] = max(longest.get(row.training, 0.0), time.monotonic() - start)
        measure(of_row, made, 1.5 * plan.seconds)


# ---- what it shows ------------------------------------------------------------------------------
def conditions(records: Iterable[Record]) -> Record:
    """The record of device, versions and command."""
    return next(r for r in records if r["what"] == "conditions")


def text(records: Sequence[Record]) -> list[str]:
    """Everything for the terminal."""
    head = conditions(records)
    lines = [f"Whole models: {head['text']}", f"by {head['command']}", *row_tables(records), ""]
    lines += means(records)
    low = slower(records)
    lines += [f"-- slower than without the package: {len(low) or 'nothing'}", *low]
    missing = left_out(records)
    lines += [f"-- left out: {len(missing) or 'nothing'}", *missing]
    problems = [r["text"] for r in records if r["what"] == "problem"]
    return [*lines, *(f"PROBLEM {problem}" for problem in problems)]


def left_out(records: Sequence[Record]) -> list[str]:
    """Rows that were to be measured, and the variants that were not."""
    measured = gpu_results.rows(records)
    lines = []
    for row, names in conditions(records)["promised"].items():
        _, times = measured.get((TABLE, row), ("", {}))
        missing = [name for name in names if name not in times]
        if missing:
            lines.append(f"{row}: {', '.join(missing)}")
    return lines


def markdown(records: Sequence[Record]) -> str:
    """The tables of docs/benchmarks.md."""
    head = conditions(records)
    lines = [
        f"Measured on {head['text']},",
        f"by `{head['command']}`. ms a call: median ± half of the distance of the quartiles; kind:",
        "measured, the variants of a row in turn in one process. Ratios: accelerated to eager, and",
        "accelerated and compiled to compiled; - was left out, for want of time.",
    ]
    found = {row: times for (_, row), (_, times) in gpu_results.rows(records).items()}
    works = dict.fromkeys(row.partition(" ")[2] for row in found)
    for work in works:
        lines += ["", f"{work[0].upper()}{work[1:]}:", ""]
        lines.append("| | eager | accelerated | | compiled | both | |")
        lines.append("|---|---:|---:|---:|---:|---:|---:|")
        for row, times in found.items():
            name, _, own = row.partition(" ")
            if own == work:
                cells = [_cell(times, n) for n in ("eager", "accelerated")]
                cells.append(_ratio(times, "accelerated"))
                cells += [_cell(times, n) for n in ("compiled", "both")]
                lines.append(f"| {name} | {' | '.join(cells)} | {_ratio(times, 'both')} |")
    return "\n".join(lines) + "\n"


def _cell(times: dict[str, Times], name: str) -> str:
    if name not in times:
        return "-"
    t = times[name]
    return f"{number(t.median)} ± {(t.high - t.low) / 2 / t.median:.0%}"


def _ratio(times: dict[str, Times], name: str) -> str:
    base = times.get(BASELINES[name])
    return f"**{base.median / times[name].median:.2f}x**" if base and name in times else "-"


def marks(section: str) -> tuple[str, str]:
    """Between which a document has a section that is written by a command."""
    return f"<!-- {section}: begin -->", f"<!-- {section}: end -->"


def write_section(path: Path, text: str, section: str = SECTION) -> None:
    """Put the tables between the marks of a document.

    Raises:
        SystemExit: It has no such marks.
    """
    begin, end = marks(section)
    document = path.read_text()
    before, found, rest = document.partition(begin)
    _, ends, after = rest.partition(end)
    if not found or not ends:
        raise SystemExit(f"{path} has no section between {begin} and {end}")
    path.write_text(f"{before}{begin}\n{text}{end}{after}")


# ---- the command --------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="bench_models.py", description=(__doc__ or "").split(":")[0]
    )
    made.add_argument("--models", help=f"names, with commas (default: {','.join(NAMES)})")
    made.add_argument(
        "--only", action="append", default=[], help='such as "training" or "batch 1,"'
    )
    made.add_argument("--quick", action="store_true", help="two models, small images, no compiler")
    made.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    made.add_argument("--minutes", type=float, default=MINUTES, help="at most (default: 25)")
    made.add_argument("--seconds", type=float, help="for the rounds of a row (default: 4)")
    made.add_argument("--backend", default="auto", help="for accelerate (default: auto)")
    made.add_argument("--fuse", choices=("block", "tail"), default="tail", help="for accelerate")
    made.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder (bench/results)")
    made.add_argument("--show", action="store_true", help="show the last figures, measure nothing")
    made.add_argument("--markdown", type=Path, help="write the tables into this file's section")
    return made


def plan_of(options: argparse.Namespace) -> Plan:
    """What the options ask for."""
    plan = QUICK if options.quick else Plan()
    names = options.models.split(",") if options.models else plan.names
    seconds = plan.seconds if options.seconds is None else options.seconds
    compiler = plan.compiler and not options.no_compile
    how = (options.backend, options.fuse)
    return Plan(names, plan.side, compiler, seconds, plan.options, *how)


def command(options: argparse.Namespace) -> str:
    """What measures the same again, with the ``fuse`` that was the default then."""
    default = parser().parse_args([])
    words = ["python", "tools/bench_models.py"]
    for name, value in vars(options).items():
        if name in ("results", "show", "markdown"):
            continue
        if value == getattr(default, name) and name != "fuse":
            continue
        flag = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            words += (
                [flag] if one is True else [flag, f"{one:g}" if type(one) is float else f"{one}"]
            )
    return shlex.join(words)


def fuses_tails(command: str) -> bool:
    """Whether what that `command` measured was accelerated with tails; older ones name no way."""
    return "--fuse tail" in command


def run(options: argparse.Namespace) -> Path:
    """Measure; the records lie in the returned file, written as they are measured."""
    import torch
    from variants import BOTH, COMPILED, EAGER, OURS, device

    from chattn_cuda.cli.bench import quiet
    from chattn_cuda.cli.environment import environment
    from chattn_cuda.cli.measure import keep_freed_memory

    quiet()
    if options.threads:
        torch.set_num_threads(options.threads)
    if device() == "cpu":
        keep_freed_memory()
    plan = plan_of(options)
    found = rows(plan.names, options.only)
    if not found:
        raise SystemExit(f"--only {' '.join(options.only)}: no row has that in its name")
    path = options.results / f"models-{device()}{'-blocks' * (plan.fuse == 'block')}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.environ[gpu_results.FILE] = str(path)
    os.environ[gpu_results.END] = str(time.time() + 60 * options.minutes)
    variants = [EAGER, OURS] + [COMPILED, BOTH] * plan.compiler
    promised = {str(row): variants for row in found}
    text = environment(device()).line() + f", {plan.side} x {plan.side} images, float32"
    emit("conditions", text=text, command=command(options), promised=promised)
    measure_all(found, plan)
    return path


def main(arguments: Sequence[str]) -> int:
    """Measure or read, print, write; returns 1 where a variant was wrong or failed."""
    options = parser().parse_args(arguments)
    if options.show:
        paths = sorted(options.results.glob("models-*.jsonl"))
        if not paths:
            print("no figures of whole models yet: make bench-models")
            return 0
    else:
        paths = [run(options)]
    failed = False
    for path in paths:
        records = read(path)
        print("\n".join(text(records)), flush=True)
        failed = failed or any(r["what"] == "problem" for r in records)
        if options.markdown:
            write_section(options.markdown, markdown(records))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
