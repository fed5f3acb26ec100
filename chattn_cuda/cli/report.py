"""Results as terminal tables, CSV, JSON, Markdown and chart panels."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import torch

from chattn_cuda.cli.cases import BLOCKS, COMPILE, EAGER, Row
from chattn_cuda.cli.chart import Panel
from chattn_cuda.cli.environment import Environment
from chattn_cuda.cli.measure import Entry, Result
from chattn_cuda.cli.terminal import Cell, Table

__all__ = [
    "Report",
    "geometric_mean",
    "milliseconds",
    "noise_note",
    "ratio_cell",
    "read",
    "short_name",
    "size",
    "time_cell",
]


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """The geometric mean, or None where a value is missing."""
    known = [v for v in values if v is not None]
    values = list(values) if not isinstance(values, Sequence) else values
    if not known or len(known) != len(values):
        return None
    return exp(sum(map(log, known)) / len(known))


def milliseconds(ms: float | None) -> str:
    """Three digits or so; "-" for None."""
    if ms is None:
        return "-"
    return f"{ms:.{0 if ms >= 100 else 1 if ms >= 10 else 2 if ms >= 0.1 else 4}f}"


def time_cell(entry: Entry | None) -> Cell:
    """The median, with "~" where the machine was too busy."""
    if entry is None or entry.ms is None:
        return Cell("-")
    return Cell("~" * entry.noisy + milliseconds(entry.ms), "yellow" if entry.noisy else "")


def noise_note(entries: Iterable[Entry]) -> str | None:
    """What "~" means, with the number of such medians; None where there are none."""
    timed = [e for e in entries if e.samples]
    noisy = sum(e.noisy for e in timed)
    if not noisy:
        return None
    return (
        f"~ : {noisy} of {len(timed)} medians are unreliable, because other processes were busy; "
        "repeat on an idle machine"
    )


def ratio_text(ratio: float | None) -> str:
    """Such as "2.35x"; "-" for None."""
    return "-" if ratio is None else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def ratio_cell(ratio: float | None) -> Cell:
    """Green where faster, red where slower."""
    style = "" if ratio is None else "green" if ratio >= 1 else "red"
    return Cell(ratio_text(ratio), style)


def short_name(implementation: str) -> str:
    """What the implementation is called in tables: "chattn_cuda" for our backends."""
    return implementation if implementation in (EAGER, COMPILE) else f"chattn_cuda {implementation}"


def size(row: Row, by: str = " x ") -> str:
    """The map's size."""
    return by.join(map(str, row.shape))


@dataclasses.dataclass
class Report:
    """Results with their conditions.

    Attributes:
        results: In the order measured.
        environment: The conditions.
        command: How to measure them again.
    """

    results: list[Result]
    environment: Environment
    command: str

    def groups(self) -> list[list[Result]]:
        """The results by block, type, layout and direction."""
        found: dict[tuple[Any, ...], list[Result]] = {}
        for result in self.results:
            row = result.row
            key = (row.block, row.dtype, row.layout, row.direction)
            found.setdefault(key, []).append(result)
        return list(found.values())

    def implementations(self) -> list[str]:
        """All names, eager and torch.compile first."""
        return list(dict.fromkeys(name for r in self.results for name in r.entries))

    def ours(self) -> list[str]:
        """The names of our own backends."""
        return [name for name in self.implementations() if name not in (EAGER, COMPILE)]

    def tables(self) -> list[Table]:
        """A table per group, and one of the geometric means."""
        return [self._group_table(group) for group in self.groups()] + [self.means_table()]

    def _group_table(self, group: Sequence[Result]) -> Table:
        row = group[0].row
        names, ours = self.implementations(), self.ours()
        title = f"{BLOCKS[row.block].title}, {row.dtype_name}, {row.layout}, {row.direction}"
        columns = ["NxCxHxW", *(f"{n.removeprefix('torch.')} ms" for n in names)]
        for name in ours:
            prefix = f"{name} " if len(ours) > 1 else ""
            columns += [f"{prefix}vs eager", f"{prefix}vs compile"]
        table = Table(title, [*columns, "max err"])
        for result in group:
            cells: list[str | Cell] = [size(result.row, "x")]
            cells += [self._time(result.entries.get(n)) for n in names]
            for name in ours:
                cells += [ratio_cell(result.ratio(base, name)) for base in (EAGER, COMPILE)]
            largest = [
                e.error for n in ours if (e := result.entries.get(n)) and e.error is not None
            ]
            table.rows.append([*cells, f"{max(largest):.1e}" if largest else "-"])
        if len(group) > 1:
            cells = ["geometric mean", *("" for _ in names)]
            for name in ours:
                cells += [ratio_cell(self.mean(group, base, name)) for base in (EAGER, COMPILE)]
            table.rows += [None, [*cells, ""]]
        return table

    def _time(self, entry: Entry | None) -> Cell:
        if entry is not None and entry.wrong is not None:
            return Cell("WRONG", "bold red")
        return time_cell(entry)

    def mean(self, group: Sequence[Result], baseline: str, name: str) -> float | None:
        """The geometric mean of a group's ratios."""
        return geometric_mean([result.ratio(baseline, name) for result in group])

    def means_table(self) -> Table:
        """The geometric means of all groups."""
        columns = ["", "backend", "vs eager", "vs torch.compile", "slowest row vs eager"]
        table = Table("Geometric means over the maps", columns, left=2)
        for group in self.groups():
            row = group[0].row
            for name in self.ours():
                ratios = [r for result in group if (r := result.ratio(EAGER, name)) is not None]
                table.rows.append(
                    [
                        f"{row.block} {row.dtype_name} {row.layout} {row.direction}",
                        name,
                        ratio_cell(self.mean(group, EAGER, name)),
                        ratio_cell(self.mean(group, COMPILE, name)),
                        ratio_cell(min(ratios, default=None)),
                    ]
                )
        return table

    def problems(self) -> list[str]:
        """A line for everything that is wrong or could not run."""
        lines = []
        for result in self.results:
            for name, entry in result.entries.items():
                if entry.wrong:
                    lines.append(f"{result.row.id}: {name} is WRONG: {entry.wrong}")
        reasons = {
            f"{name} could not run: {e.unavailable}"
            for result in self.results
            for name, e in result.entries.items()
            if e.unavailable
        }
        return lines + sorted(reasons)

    def noise(self) -> str | None:
        """A line about unreliable medians, or None."""
        return noise_note(e for result in self.results for e in result.entries.values())

    def wrong(self) -> bool:
        """Whether any implementation gave a wrong result."""
        return any(e.wrong for result in self.results for e in result.entries.values())

    # ---- files ---------------------------------------------------------------------------------

    def write(self, folder: Path) -> list[Path]:
        """Write ``<block>-<device type>.csv`` and ``.json`` per block; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for block in dict.fromkeys(r.row.block for r in self.results):
            part = Report(
                [r for r in self.results if r.row.block == block], self.environment, self.command
            )
            stem = folder / f"{block}-{part.results[0].row.device}"
            stem.with_suffix(".json").write_text(json.dumps(part.as_dict(), indent=1) + "\n")
            with stem.with_suffix(".csv").open("w", newline="") as file:
                lines = part.csv_rows()
                writer = csv.DictWriter(file, fieldnames=list(lines[0]))
                writer.writeheader()
                writer.writerows(lines)
            paths += [stem.with_suffix(".csv"), stem.with_suffix(".json")]
        return paths

    def csv_rows(self) -> list[dict[str, Any]]:
        """A line per row and implementation, with the conditions in each."""
        lines = []
        for result in self.results:
            row = result.row
            for name, entry in result.entries.items():
                spread = entry.spread() or (None, None)
                lines.append(
                    {
                        "block": row.block,
                        "n": row.shape[0],
                        "c": row.shape[1],
                        "h": row.shape[2],
                        "w": row.shape[3],
                        "dtype": row.dtype_name,
                        "layout": row.layout,
                        "direction": row.direction,
                        "device_type": row.device,
                        "implementation": name,
                        "median_ms": _rounded(entry.ms),
                        "p20_ms": _rounded(spread[0]),
                        "p80_ms": _rounded(spread[1]),
                        "rounds": len(entry.samples),
                        "waited": _rounded(entry.waited),
                        "vs_eager": _rounded(result.ratio(EAGER, name)),
                        "vs_compile": _rounded(result.ratio(COMPILE, name)),
                        "max_error": entry.error,
                        "note": entry.wrong or entry.unavailable or "",
                        **self.environment.as_dict(),
                        "command": self.command,
                    }
                )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `read` is the inverse."""
        return {
            "environment": self.environment.as_dict(),
            "command": self.command,
            "results": [
                {
                    "row": {**dataclasses.asdict(r.row), "dtype": r.row.dtype_name},
                    "entries": {
                        name: {
                            **dataclasses.asdict(e),
                            "median_ms": _rounded(e.ms),
                            "samples": [round(s, 4) for s in e.samples],
                            "waited": _rounded(e.waited),
                        }
                        for name, e in r.entries.items()
                    },
                }
                for r in self.results
            ],
        }

    def markdown(self) -> str:
        """The tables of a README: the means, then every row."""
        ours = self.ours()
        lines = [f"Measured on {self.environment.line()}, by `{self.command}`.", ""]
        parts = []
        for group in self.groups():
            row = group[0].row
            name = f"{BLOCKS[row.block].title}, {row.dtype_name}, {row.layout}, {row.direction}"
            means = []
            for backend in ours:
                eager, compiled = (self.mean(group, base, backend) for base in (EAGER, COMPILE))
                means.append((backend, ratio_text(eager), ratio_text(compiled)))
            parts.append((name, means, group))
        lines += ["| geometric mean over the maps | backend | vs eager | vs torch.compile |"]
        lines += ["|---|---|---:|---:|"]
        for name, means, _ in parts:
            lines += [f"| {name} | `{b}` | **{e}** | **{c}** |" for b, e, c in means]
        for name, means, group in parts:
            names = self.implementations()
            head = ["N x C x H x W", *(f"{short_name(n)}, ms" for n in names)]
            for backend in ours:
                suffix = f" (`{backend}`)" if len(ours) > 1 else ""
                head += [f"vs eager{suffix}", f"vs torch.compile{suffix}"]
            lines += ["", f"{name}:", "", _markdown_row(head)]
            lines.append(_markdown_row(["---"] + ["---:"] * (len(head) - 1)))
            for result in group:
                cells = [size(result.row), *(str(self._time(result.entries.get(n))) for n in names)]
                for backend in ours:
                    cells += [ratio_text(result.ratio(base, backend)) for base in (EAGER, COMPILE)]
                lines.append(_markdown_row(cells))
            cells = ["geometric mean", *("" for _ in names)]
            for _, eager_text, compile_text in means:
                cells += [f"**{eager_text}**", f"**{compile_text}**"]
            lines.append(_markdown_row(cells))
        note = self.noise()
        return "\n".join([*lines, *(["", note] if note else [])]) + "\n"

    def panels(self) -> list[Panel]:
        """A chart panel per group."""
        names = self.implementations()
        panels = []
        for group in self.groups():
            row = group[0].row
            kinds = {r.row.dtype for r in self.results}
            parts = [BLOCKS[row.block].title, row.layout, row.direction]
            panel = Panel(", ".join(parts[:1] + [row.dtype_name] * (len(kinds) > 1) + parts[1:]))
            for result in group:
                panel.add(
                    size(result.row),
                    {
                        short_name(n): (ratio, f"{milliseconds(result.entries[n].ms)} ms")
                        for n in names
                        if (ratio := result.ratio(EAGER, n)) is not None
                    },
                )
            if len(group) > 1:
                means = {short_name(n): self.mean(group, EAGER, n) for n in names}
                panel.add(
                    "geometric mean", {n: (m, "") for n, m in means.items() if m}, strong=True
                )
            panels.append(panel)
        return panels


def read(path: Path) -> Report:
    """The report that was written as JSON.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no such report.
    """
    data = json.loads(path.read_text())
    try:
        results = []
        for item in data["results"]:
            row = {**item["row"], "dtype": getattr(torch, item["row"]["dtype"])}
            row["shape"] = tuple(row["shape"])
            for entry in item["entries"].values():
                entry.pop("median_ms", None)
            entries = {name: Entry(**entry) for name, entry in item["entries"].items()}
            results.append(Result(Row(**row), entries))
        return Report(results, Environment(**data["environment"]), data["command"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no benchmark report: {error!r}") from error


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
