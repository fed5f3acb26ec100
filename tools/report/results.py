"""Results of the benchmarks, of whatever form, as rows with their conditions.

`make bench` leaves a CSV per block, `make bench-models` and the commands for a GPU lines of JSON.
A file in bench/results replaces the published one of its name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gpu_results
from gpu_results import Times

BENCH = Path(__file__).resolve().parents[2] / "bench"
LATEST, PUBLISHED = BENCH / "results", BENCH / "published"
MEASURED, COUNTED, PREDICTED = "measured", "counted", "predicted"
# Rows of whole models or their parts, and of blocks beside a copy of their map.
_MODEL = re.compile(r"(\S+) (\w+, batch \d+)(?:, (\w+))?(?:: (.+))?")
_BLOCK = re.compile(r"(\S+ \S+ \S+) (forward\S*), (\w+)()")


@dataclass(frozen=True)
class Source:
    """What figures come with.

    Attributes:
        kind: MEASURED, COUNTED or PREDICTED.
        conditions: Device, versions and commit.
        command: What makes them again.
        spread: What a spread is, where there is one.
        committed: Whether they came with the repository.
    """

    kind: str
    conditions: str
    command: str
    spread: str = ""
    committed: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.conditions}; by {self.command}"


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Attributes:
        subject: A network, or a block and its map.
        work: What is done with it, such as "training, batch 8" or "forward".
        layout: nchw or channels_last.
        part: Of the subject; empty: the whole.
        unit: Of the times.
        times: By variant.
    """

    subject: str
    work: str
    layout: str
    part: str
    unit: str
    times: dict[str, Times]

    @property
    def of_block(self) -> bool:
        """Not of a network: the subject has a map and a type."""
        return " " in self.subject

    @property
    def of_model(self) -> bool:
        """The time of a whole one."""
        return not (self.of_block or self.part or self.of_memory)

    @property
    def of_memory(self) -> bool:
        """No time: peak memory of a whole one."""
        return self.unit == "GiB"

    @property
    def key(self) -> tuple[str, ...]:
        """By which a row is found in another run."""
        return self.subject, self.work, self.layout, self.part


@dataclass(frozen=True)
class Results:
    """The rows of one run."""

    name: str
    source: Source
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline, at the medians and at the far ends of the spreads."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, base: Times, times: Times) -> Ratio:
        """Of two variants of a row, or of two runs of a variant."""
        ends = base.low / times.high, base.high / times.low
        return cls(base.median / times.median, *ends)

    @property
    def clear(self) -> bool:
        """Whether the spreads do not overlap."""
        return self.low > 1 or self.high < 1

    @property
    def slower(self) -> bool:
        """Beyond the spread."""
        return self.high < 1

    def __str__(self) -> str:
        digits = 1 if self.value >= 10 else 2
        return f"{self.value:.{digits}f}x ({self.low:.{digits}f}–{self.high:.{digits}f})"


def read(path: Path) -> Results:
    """Of a file.

    Raises:
        ValueError: It holds no results of a known form.
    """
    committed = path.parent == PUBLISHED
    try:
        source, rows = _of_blocks(path) if path.suffix == ".csv" else _of_records(path)
    except (KeyError, StopIteration, TypeError) as error:
        raise ValueError(f"{path.name} holds no results of the benchmarks: {error!r}") from error
    return Results(path.stem, Source(MEASURED, *source, committed), tuple(rows))


def _of_records(path: Path) -> tuple[tuple[str, str, str], Iterator[Row]]:
    records = gpu_results.read(path)
    head = next(r for r in records if r["what"] == "conditions")
    rows = list(_rows(records))
    spread = "" if rows and all(row.of_memory for row in rows) else "quartiles"
    return (head["text"], head.get("command", f"make {path.stem}"), spread), iter(rows)


def _rows(records: Sequence[gpu_results.Record]) -> Iterator[Row]:
    for (_, name), (unit, times) in gpu_results.rows(records).items():
        if found := _MODEL.fullmatch(name) or _BLOCK.fullmatch(name):
            subject, work, layout, part = found.groups("")
            yield Row(subject, work, layout or "channels_last", part, unit, times)


def _of_blocks(path: Path) -> tuple[tuple[str, str, str], list[Row]]:
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["median_ms"]]
    found: dict[tuple[str, ...], dict[str, Times]] = {}
    for line in lines:
        shape = "x".join(line[size] for size in "nchw")
        key = f"{line['block']} {shape} {line['dtype']}", line["direction"], line["layout"]
        ms = (float(line[name]) for name in ("median_ms", "p20_ms", "p80_ms"))
        found.setdefault(key, {})[line["implementation"]] = Times(*ms, int(line["rounds"]))
    first = lines[0] if lines else {}
    where = f"{first['threads']} of {first['cores']} cores" if not first["cuda"] else ""
    version = f"chattn_cuda {first['chattn_cuda']} ({first['commit']})"
    parts = [f"{first['device']} ({first['isa']})", where, f"torch {first['torch']}", version]
    head = ", ".join(filter(None, parts)), first["command"], "20 % and 80 % quantiles"
    return head, [Row(*key, "", "ms", times) for key, times in found.items()]


def files(folders: Iterable[Path]) -> list[Path]:
    """The results in several folders; of two files of a name that of the first folder."""
    found: dict[str, Path] = {}
    for folder in folders:
        for pattern in ("*.jsonl", "*.csv"):
            for path in sorted(folder.glob(pattern)):
                found.setdefault(path.name, path)
    return sorted(found.values(), key=lambda path: path.name)


def read_all(folders: Iterable[Path]) -> list[Results]:
    """Of every file with rows, by name."""
    return [results for path in files(folders) if (results := read(path)).rows]
