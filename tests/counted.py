"""bench/counted.csv: what the CUDA kernels of every block move and launch, counted without a GPU.

    python -m tests.counted            compares it with what is counted now
    python -m tests.counted --write    writes it

Maps are feature maps read and written, in units of one; small bytes are weights, their gradients
and what is (N, C). The page of `make report` shows the table, so it is what is counted, neither
worse nor better.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch

from tests.cuda_host.blocks import KERNELS
from tests.cuda_host.traffic import LAYOUTS, measure, total
from tests.tables import settle

TABLE = Path(__file__).resolve().parents[1] / "bench" / "counted.csv"
BATCH, DTYPE, SM = 2, torch.bfloat16, 90
# The first and the last stage of ResNet-50; selective kernels there have half of the channels.
STAGES = ((256, 56), (2048, 7))
HALF = ("sk", "sk_block")
#: what must not grow
COUNTED = ("maps", "launches", "small_bytes")
COLUMNS = ("block", "shape", "dtype", "layout", "direction", "sm", *COUNTED, "eager_maps",
           "floor_maps")  # fmt: skip

Row = dict[str, str]


def rows() -> list[Row]:
    """What is counted now."""
    found = []
    for block in KERNELS:
        for c, h in STAGES:
            shape = (BATCH, c // 2 if block in HALF else c, h, h)
            for layout in LAYOUTS:
                for direction, call in measure(block, shape, DTYPE, layout, sm=SM).items():
                    floors, size = call.floors, "x".join(map(str, shape))
                    where = (block, size, "bfloat16", layout, direction, SM)
                    counted = (f"{call.passes:g}", len(call.report.launches))
                    more = (total(call.small).bytes, floors.eager.passes, floors.single_read.passes)
                    values = map(str, (*where, *counted, *more))
                    found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def read() -> list[Row]:
    """The committed table."""
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def differences(now: list[Row], before: list[Row]) -> list[str]:
    """A line for every figure that is not the committed one."""

    def by_call(found: list[Row]) -> dict[tuple[str, ...], Row]:
        return {tuple(row[k] for k in COLUMNS if k not in COUNTED): row for row in found}

    old, new = by_call(before), by_call(now)
    lines = [f"{', '.join(key)}: not in the table" for key in new.keys() - old.keys()]
    lines += [f"{', '.join(key)}: no longer counted" for key in old.keys() - new.keys()]
    for key in old.keys() & new.keys():
        for name in COUNTED:
            was, is_ = float(old[key][name]), float(new[key][name])
            if was != is_:
                verdict = "WORSE" if is_ > was else "better"
                lines.append(f"{', '.join(key)}: {name} {was:g} -> {is_:g}, {verdict}")
    return sorted(lines)


def main() -> int:
    """Compare, or write the table; returns the exit code."""
    now = rows()
    changed = differences(now, read()) if TABLE.exists() else []
    return settle(TABLE, COLUMNS, now, changed)


if __name__ == "__main__":
    sys.exit(main())
