"""The first page of a run: what is wrong, what is slower than without the package, what is left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from gpu_results import Record, Times, rows
from gpu_runner import FAILED, LATE, OK, SKIPPED, Step

LINES, WIDTH = 40, 150  # of the first page
# What each variant is compared with: a model with the package, and the same without it.
BASELINES = {
    "accelerated": "eager", "both": "compiled", "cuda": "eager", "triton": "eager", "cpu": "eager",
}  # fmt: skip
SLOW_KERNEL = 0.7  # of the copy's speed
GATE_US = {64: 5.0, 0: 3.0}  # from which batch on, what a kernel that reads no map may take
Promises = Mapping[tuple[str, str], Sequence[str]]


# ---- what there is to say -----------------------------------------------------------------------
def wrong(steps: Iterable[Step], records: Iterable[Record]) -> list[str]:
    """Steps that failed, and problems; failures of one test for one reason are one line."""
    lines = [f"{s.name}: failed: {s.note}" for s in steps if s.status == FAILED]
    problems = [r for r in records if r["what"] == "problem"]
    lines += [f"{r['step']}: {r['text']}" for r in problems if r["step"] != "tests"]

    def cause(text: str) -> tuple[str, str]:
        test, _, message = text.partition(": ")
        return test.split("[")[0], re.sub(r"\d[\d.e+-]*", "#", message)[:40]

    failures = sorted((r["text"] for r in problems if r["step"] == "tests"), key=cause)
    groups = [list(group) for _, group in groupby(failures, key=cause)]
    for texts in sorted(groups, key=len, reverse=True):
        count = f"{len(texts)} times: " if len(texts) > 1 else ""
        lines.append(f"{count}{texts[0]}")
    return list(dict.fromkeys(" ".join(line.split()) for line in lines))


@dataclass(frozen=True)
class Comparison:
    """One variant of a row against what it should be faster than."""

    table: str
    row: str
    unit: str
    name: str
    times: Times
    base_name: str
    base: Times

    @property
    def ratio(self) -> float:
        """How many times as fast as the baseline."""
        return self.base.median / self.times.median

    @property
    def clear(self) -> bool:
        """Whether the quartiles do not overlap."""
        return self.times.low > self.base.high or self.times.high < self.base.low

    def __str__(self) -> str:
        def text(name: str, t: Times) -> str:
            return f"{name} {number(t.median)} ({number(t.low)} to {number(t.high)})"

        spread = "" if self.clear else ", within the spread"
        figures = f"{text(self.name, self.times)}, {text(self.base_name, self.base)} {self.unit}"
        return f"{self.ratio:.2f}x {self.table}: {self.row}: {figures}{spread}"


def comparisons(records: Iterable[Record]) -> list[Comparison]:
    """All that can be compared."""
    return [
        Comparison(table, row, unit, name, times[name], base, times[base])
        for (table, row), (unit, times) in rows(records).items()
        for name, base in BASELINES.items()
        if name in times and base in times
    ]


def slower(records: Iterable[Record]) -> list[str]:
    """Every row below 1.00x, the slowest first, and those that are clear before the others."""
    found = [c for c in comparisons(records) if c.ratio < 1]
    return [str(c) for c in sorted(found, key=lambda c: (not c.clear, c.ratio))]


def means(records: Iterable[Record]) -> list[str]:
    """Geometric means of the ratios, a line per table."""
    found = comparisons(records)
    lines = []
    for table in dict.fromkeys(c.table for c in found):
        parts = []
        for name, base in BASELINES.items():
            ratios = [
                c.ratio for c in found if (c.table, c.name, c.base_name) == (table, name, base)
            ]
            if ratios:
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rows"
                parts.append(f"{name} {geometric_mean(ratios):.2f}x {base} ({spread})")
        lines.append(f"{table}: {'; '.join(parts)}")
    return lines


def kernels(records: Iterable[Record]) -> list[str]:
    """How many kernels are far from a copy's speed, or too long for what they do, and the worst."""
    found = [r for r in records if r["what"] == "kernel"]
    passes = sorted((share(r), label(r)) for r in found if r["maps"] and share(r) < SLOW_KERNEL)
    small = [
        (r["us"], label(r))
        for r in found
        if r["maps"] is None and r["us"] > next(us for n, us in GATE_US.items() if r["batch"] >= n)
    ]
    lines = []
    if passes:
        worst = ", ".join(f"{part:.0%} {name}" for part, name in passes[:2])
        lines.append(f"{len(passes)} passes below {SLOW_KERNEL:.0%} of a copy's speed: {worst}")
    if small:
        worst = ", ".join(f"{us:.0f} us {name}" for us, name in sorted(small, reverse=True)[:2])
        limits = " or ".join(f"{us:.0f}" for us in GATE_US.values())
        lines.append(f"{len(small)} kernels without a map above {limits} us: {worst}")
    return lines


def left_out(steps: Iterable[Step], records: Sequence[Record], promises: Promises) -> list[str]:
    """Steps that did not end or begin, rows and variants that were not measured, tests not run."""
    lines = [f"{s.name}: {s.status}; {s.note}" for s in steps if s.status in (LATE, SKIPPED)]
    measured = {key: times for key, (_, times) in rows(records).items()}
    for (table, row), names in promises.items():
        missing = [name for name in names if name not in measured.get((table, row), ())]
        if missing:
            lines.append(f"{table}: {row}: {', '.join(missing)}")
    total = test_counts(records)
    if total.get("left"):
        lines.append(f"tests: {total['left']} of {total['collected']} were not run")
    return lines


def test_counts(records: Iterable[Record]) -> dict[str, int]:
    """Of all parts."""
    parts = {r["part"]: r for r in records if r["what"] == "tests"}
    names = ("collected", "passed", "failed", "skipped")
    total = {name: sum(part[name] for part in parts.values()) for name in names} if parts else {}
    if parts:
        total["left"] = total["collected"] - sum(total[name] for name in names[1:])
    return total


# ---- as text ------------------------------------------------------------------------------------
def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def share(kernel: Record) -> float:
    """Of the speed of a copy, which reads and writes the map once."""
    return float(kernel["maps"] / 2 * kernel["copy"] / kernel["us"])


def label(kernel: Record) -> str:
    """Which kernel, and where."""
    where = f"{kernel['batch']}x{kernel['stage']} {kernel['layout']}"
    return f"{kernel['block']} {kernel['kernel']} {where}"


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product


def conditions(records: Iterable[Record]) -> str:
    """Device, versions and commit, as far as somebody has said."""
    return next((r["text"] for r in records if r["what"] == "conditions"), "nothing is known")


def page(
    name: str, seconds: float, steps: Sequence[Step], records: Sequence[Record], promises: Promises
) -> list[str]:
    """At most 40 lines."""
    total = test_counts(records)
    ran = [f"{s.name} {s.seconds:.0f}" for s in steps if s.status == OK]
    head = [f"==== {name}, {seconds:.0f} s: {conditions(records)}", f"ran (s): {', '.join(ran)}"]
    if total:
        head.append("tests: " + ", ".join(f"{count} {what}" for what, count in total.items()))
    head += means(records) + kernels(records)
    sections = {
        "wrong": wrong(steps, records),
        "slower than without the package": slower(records),
        "left out": left_out(steps, records, promises),
    }
    room = LINES - len(head) - len(sections)
    allowed = _shares([len(lines) for lines in sections.values()], room)
    for (title, lines), count in zip(sections.items(), allowed, strict=True):
        head.append(f"-- {title}: {len(lines) or 'nothing'}")
        cut = len(lines) > count
        head += lines[: count - 1] if cut else lines
        if cut and count:
            head.append(f"and {len(lines) - count + 1} more, in {name}.txt")
    return [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in head]


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """Deals lines out one by one, so that a long list takes only what short ones leave."""
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for i, count in enumerate(wanted):
            if given[i] < count and room > 0:
                given[i] += 1
                room -= 1
    return given
