"""Committed tables that a module of the tests compares, and writes with ``--write``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["settle"]


def settle(
    table: Path, columns: Sequence[str], rows: Sequence[dict[str, str]], changed: Sequence[str]
) -> int:
    """Print what changed, and write the table where that is asked; returns the exit code."""
    print("\n".join(changed) or f"{len(rows)} rows, nothing changed")
    if "--write" not in sys.argv[1:]:
        return 1 if changed else 0
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {table}")
    return 0
