"""What got faster or slower between two runs, beyond the spread.

    python bench/compare.py OLD NEW      two files of results, or two folders

A row's variant is faster where the two spreads (quartiles, or the 20 % and 80 % quantiles) do not
overlap. Eager PyTorch is no work of ours: where it changes, the machine or torch did. It judges
nothing: the exit code is 0 whatever the times are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from math import exp, fsum, log
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from gpu_results import Times  # noqa: E402
from gpu_summary import number  # noqa: E402
from report.results import Ratio, Results, read, read_all  # noqa: E402

BASELINES = ("eager", "compiled", "torch.compile")


class Change(NamedTuple):
    """One variant of a row in both runs."""

    row: str
    variant: str
    unit: str
    old: Times
    new: Times

    @property
    def ratio(self) -> Ratio:
        """How many times as fast as before."""
        return Ratio.of(self.old, self.new)

    def __str__(self) -> str:
        def text(t: Times) -> str:
            return f"{number(t.median)} ({number(t.low)} to {number(t.high)})"

        times = f"{text(self.old)} -> {text(self.new)} {self.unit}"
        return f"{self.ratio.value:.2f}x  {self.row}, {self.variant}: {times}"


Variants = dict[tuple[str, str], tuple[str, Times]]


def variants(runs: Iterable[Results], named: bool) -> Variants:
    """By row and variant: unit and times; ``named``: a file's rows are not those of another."""
    return {
        (", ".join(filter(None, (*row.key, run.name * named))), name): (row.unit, times)
        for run in runs
        for row in run.rows
        for name, times in row.times.items()
    }


def changes(old: Variants, new: Variants) -> Iterator[Change]:
    """Of all that both have."""
    for (row, name), (unit, times) in new.items():
        if (row, name) in old:
            yield Change(row, name, unit, old[row, name][1], times)


def compared(old: list[Results], new: list[Results]) -> list[str]:
    """The lines that are printed."""
    lines = [
        f"{label}: {conditions}"
        for label, runs in (("old", old), ("new", new))
        for conditions in dict.fromkeys(run.source.conditions for run in runs)
    ]
    before, after = (variants(runs, max(len(old), len(new)) > 1) for runs in (old, new))
    found = list(changes(before, after))
    clear = sorted((c for c in found if c.ratio.clear), key=lambda c: c.ratio.value)
    slower = [c for c in clear if c.ratio.slower]
    faster = [c for c in reversed(clear) if not c.ratio.slower]
    for title, rows in (("slower", slower), ("faster", faster)):
        lines += ["", f"{title} beyond the spread: {len(rows) or 'nothing'}", *map(str, rows)]
    lines += ["", f"within the spread: {len(found) - len(clear)} of {len(found)}"]
    base = [log(c.ratio.value) for c in found if c.variant in BASELINES]
    if base:
        mean = exp(fsum(base) / len(base))
        lines.append(f"without the package (the machine and torch): {mean:.2f}x, {len(base)} rows")
    for label, one, other in (("old", before, after), ("new", after, before)):
        alone = sorted(", ".join(key) for key in one.keys() - other.keys())
        lines += [f"only in the {label} run: {len(alone)}"] * bool(alone) + alone
    return lines


def load(path: Path) -> list[Results]:
    """A file, or all of a folder.

    Raises:
        SystemExit: There is nothing.
    """
    if not path.exists():
        raise SystemExit(f"{path}: no such file or folder")
    try:
        found = [read(path)] if path.is_file() else read_all([path])
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not found:
        raise SystemExit(f"{path} holds no results; make bench and make bench-models make some")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path, help="results: a file, or a folder")
    parser.add_argument("new", type=Path, help="the same of another run")
    options = parser.parse_args(arguments)
    print("\n".join(compared(load(options.old), load(options.new))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
