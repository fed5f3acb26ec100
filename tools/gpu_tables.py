"""The tables behind the first page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_results import Record, Times, rows
from gpu_summary import BASELINES, number, share


def tables(records: Sequence[Record]) -> list[str]:
    """All of them."""
    return [*row_tables(records), *kernel_tables(records)]


def row_tables(records: Iterable[Record]) -> list[str]:
    """What was measured in turn: medians, quartiles, ratios, peak memory."""
    found = rows(records)
    lines = []
    for table in dict.fromkeys(table for table, _ in found):
        mine = {row: (unit, times) for (t, row), (unit, times) in found.items() if t == table}
        names = list(dict.fromkeys(name for _, times in mine.values() for name in times))
        memory = any(t.gib is not None for _, times in mine.values() for t in times.values())
        widest = max(map(len, mine))
        lines += ["", f"{table}: median (quartiles), times as fast as the baseline"]
        lines.append(" " * widest + "".join(f" {name:>22}" for name in names)
                     + ("   peak GiB" if memory else ""))  # fmt: skip
        for row, (unit, times) in mine.items():
            cells = "".join(f" {_cell(name, times, unit):>22}" for name in names)
            peaks = [times[n].gib for n in names if n in times and times[n].gib is not None]
            peak = " / ".join(f"{gib:.2f}" for gib in peaks)
            lines.append(f"{row:{widest}}{cells}" + (f"   {peak}" if peak else ""))
    return lines


def _cell(name: str, times: dict[str, Times], unit: str) -> str:
    if name not in times:
        return "-"
    t = times[name]
    text = f"{number(t.median)} ({number(t.low)}-{number(t.high)}) {unit}"
    base = times.get(BASELINES.get(name, ""))
    return f"{text} {base.median / t.median:.2f}x" if base else text


def kernel_tables(records: Iterable[Record]) -> list[str]:
    """Kernel by kernel: microseconds, and the share of a copy's speed in the same run."""
    found = [r for r in records if r["what"] == "kernel"]
    lines = []
    for block, layout in dict.fromkeys((r["block"], r["layout"]) for r in found):
        mine = [r for r in found if (r["block"], r["layout"]) == (block, layout)]
        columns = list(dict.fromkeys((r["stage"], r["batch"]) for r in mine))
        columns.sort(key=lambda column: -column[1])
        lines += ["", f"{block}, {layout}: us a call, share of a copy's speed"]
        lines.append(f"{'':26}" + "".join(f"{n:>4}x{stage}".rjust(12) for stage, n in columns))
        copies = {(r["stage"], r["batch"]): r["copy"] for r in mine}
        lines.append(f"{'copy':26}" + "".join(f"{number(copies[c]):>7}     " for c in columns))
        for kernel in dict.fromkeys(r["kernel"] for r in mine):
            at = {(r["stage"], r["batch"]): r for r in mine if r["kernel"] == kernel}
            cells = "".join(_kernel_cell(at.get(column)) for column in columns)
            lines.append(f"{kernel[:25]:26}{cells}")
    return lines


def _kernel_cell(kernel: Record | None) -> str:
    if kernel is None:
        return f"{'-':>7}     "
    part = f"{share(kernel):.0%}" if kernel["maps"] else ""
    return f"{number(kernel['us']):>7}{part:>5}"
