"""What the steps of gpu_check.py and gpu_models.py found: records, a line of JSON each.

Steps add records as they go, so that what a step had when its time was over counts. `what` is

    conditions  text: device, versions, commit
    row         table, row, unit, times {variant: Times}; of those with most variants, the last
    kernel      block, layout, stage, batch, kernel, us, maps, copy
    tests       part, collected, passed, failed, skipped; the last record of a part counts
    problem     step, text: something is wrong
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

Record = dict[str, Any]

FILE, END = "GPU_CHECK_RESULTS", "GPU_CHECK_END"  # environment variables that the runner sets


@dataclass(frozen=True)
class Times:
    """Of one variant in a row: the median, the quartiles and the number of samples.

    Attributes:
        gib: Peak memory of a call with the weights, where it was looked at.
        error: Relative difference from eager PyTorch's results.
    """

    median: float
    low: float
    high: float
    count: int
    gib: float | None = None
    error: float | None = None

    @classmethod
    def of(cls, samples: Sequence[float], scale: float = 1.0, **more: float | None) -> Times:
        """Of samples, times ``scale``."""
        values = [scale * s for s in samples]
        parts = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median(values), parts[0], parts[-1], len(values), **more)


def emit(what: str, **fields: Any) -> None:
    """Add a record; outside of a run it is printed."""
    line = json.dumps({"what": what, **fields})
    if path := os.environ.get(FILE):
        with Path(path).open("a") as file:  # short lines, appended whole by every process
            file.write(line + "\n")
    else:
        print(line, flush=True)


def emit_row(table: str, row: str, unit: str, times: dict[str, Times]) -> None:
    """Add a row."""
    emit("row", table=table, row=row, unit=unit, times={k: asdict(v) for k, v in times.items()})


def read(path: Path) -> list[Record]:
    """All records; a line that a killed process left unfinished is none."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def rows(records: Iterable[Record]) -> dict[tuple[str, str], tuple[str, dict[str, Times]]]:
    """(table, row): (unit, times by variant), in the order in which the rows first came."""
    found: dict[tuple[str, str], tuple[str, dict[str, Times]]] = {}
    for r in records:
        if r["what"] == "row":
            key, times = (r["table"], r["row"]), {k: Times(**t) for k, t in r["times"].items()}
            if key not in found or len(times) >= len(found[key][1]):
                found[key] = (r["unit"], times)
    return found


def left() -> float:
    """Seconds until this step must have ended."""
    return float(os.environ.get(END, "inf")) - time.time()


class OutOfTime(Exception):
    """What was to be done next takes longer than there is time."""


def need(seconds: float) -> None:
    """Raises `OutOfTime` where fewer are left."""
    if left() < seconds:
        raise OutOfTime
