"""Tables of docs/gains.md and docs/benchmarks.md, from published results.

    python tools/model_gains.py        writes them; behind new results in bench/published/

Those of whole models are tools/bench_models.py's, those of tails are what `make bench` leaves. Of
docs/gains.md: a ratio is the baseline's median over ours; behind it stands what the quartiles of
both allow. It is bold where they do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench_models import (
    LAYOUTS,
    ROOT,
    SECTION,
    conditions,
    fuses_tails,
    markdown,
    write_section,
)
from gpu_results import Record, read
from gpu_summary import Comparison, comparisons, geometric_mean, number
from report import results
from report.blocks import COMPILE, EAGER
from report.blocks import TITLES as BLOCK_TITLES

PUBLISHED = ROOT / "bench" / "published"
TAILS = tuple(name for name in BLOCK_TITLES if name.startswith("tail"))
WORKS = ("inference, batch 1", "inference, batch 8", "training, batch 8")
TITLES = {
    ("accelerated", True): "accelerate(model), against eager PyTorch",
    ("both", True): "torch.compile(accelerated model), against torch.compile(model)",
    ("accelerated", False): 'accelerate(model, fuse="block"), against eager PyTorch',
    ("both", False): 'The same compiled, fuse="block", against torch.compile(model)',
}


def sections() -> dict[tuple[str, str], str]:
    """By page of docs/ and name of the section."""
    return {
        ("gains", SECTION): text(sorted(PUBLISHED.glob("*.jsonl"))),
        ("benchmarks", "eager models"): markdown(read(PUBLISHED / "models-cpu.jsonl")),
        ("benchmarks", SECTION): markdown(read(PUBLISHED / "models-cpu-compiled.jsonl")),
        ("benchmarks", "tails"): of_tails(PUBLISHED / f"{name}-cpu.csv" for name in TAILS),
    }


def text(paths: Iterable[Path]) -> str:
    """The tables of docs/gains.md."""
    lines: list[str] = []
    by_kind: dict[tuple[str, bool], list[list[Record]]] = {}
    for path in paths:
        records = read(path)
        for name in dict.fromkeys(c.name for c in comparisons(records)):
            tails = fuses_tails(conditions(records)["command"])
            by_kind.setdefault((name, tails), []).append(records)
    for kind, title in TITLES.items():
        if kind in by_kind:
            lines += ["", f"## {title}", "", *_section(kind[0], by_kind[kind])]
    return "\n".join(lines[1:]) + "\n"


def _section(name: str, runs: Sequence[Sequence[Record]]) -> list[str]:
    found = [c for records in runs for c in comparisons(records) if c.name == name]
    clear = [c for c in found if c.clear]
    faster = sum(c.ratio > 1 for c in clear)
    mean = geometric_mean([c.ratio for c in found])
    lines = [
        f"{len(found)} rows: faster beyond the spread {faster}, slower {len(clear) - faster};",
        f"geometric mean {mean:.2f}x.",
    ]
    for layout in LAYOUTS:
        mine = {c.row: c for c in found if c.row.endswith(layout)}
        lines += ["", f"| {layout} | {' | '.join(WORKS)} |", f"|---{'|---:' * len(WORKS)}|"]
        for model in dict.fromkeys(row.split()[0] for row in mine):
            cells = [_cell(mine.get(f"{model} {work}, {layout}")) for work in WORKS]
            lines.append(f"| {model} | {' | '.join(cells)} |")
    for records in runs:
        head = conditions(records)
        lines += ["", f"Kind: measured, on {head['text']}, by `{head['command']}`."]
    return lines


def _cell(c: Comparison | None) -> str:
    if c is None:
        return "not measured"
    ratio = f"**{c.ratio:.2f}x**" if c.clear else f"{c.ratio:.2f}x"
    return f"{ratio} ({c.base.low / c.times.high:.2f}-{c.base.high / c.times.low:.2f})"


def of_tails(paths: Iterable[Path]) -> str:
    """The tables of tails; a line where there are no results."""
    runs = [results.read(path) for path in paths if path.exists()]
    if not runs:
        return "No figures are published yet; `make bench` measures them.\n"
    ways = ("forward", "forward+backward")
    lines = [f"Measured on {run.source.conditions}, by `{run.source.command}`." for run in runs]
    lines = [*dict.fromkeys(lines), "Geometric means of the four stages; in brackets the lowest."]
    lines += ["", f"| | layout |{''.join(f' {w}: vs eager | vs torch.compile |' for w in ways)}"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    tables: list[str] = []
    for run in runs:
        name = BLOCK_TITLES[run.rows[0].subject.split()[0]]
        for layout in reversed(LAYOUTS):
            cells = []
            for way in ways:
                rows = [r for r in run.rows if (r.layout, r.work) == (layout, way)]
                cells += [_mean(rows, base) for base in (EAGER, COMPILE)]
                tables += _table(f"{name}, {layout}, {way}", rows)
            lines.append(f"| {name} | {layout} | {' | '.join(cells)} |")
    return "\n".join([*lines, *tables]) + "\n"


def _ours(row: results.Row) -> str:
    return next(name for name in row.times if name not in (EAGER, COMPILE))


def _ratios(row: results.Row) -> dict[str, float]:
    """To what it was measured beside."""
    own = row.times[_ours(row)].median
    return {n: row.times[n].median / own for n in (EAGER, COMPILE) if n in row.times}


def _mean(rows: Sequence[results.Row], base: str) -> str:
    found = [ratios[base] for row in rows if base in (ratios := _ratios(row))]
    if not found:
        return "not measured"
    return f"**{geometric_mean(found):.2f}x** ({min(found):.2f})"


def _table(title: str, rows: Sequence[results.Row]) -> list[str]:
    if not rows:
        return []
    names = (EAGER, COMPILE, _ours(rows[0]))
    lines = ["", f"{title}; ms a call, medians:", "", "| N x C x H x W |"]
    lines[-1] += "".join(f" {name} |" for name in (*names, "vs eager", "vs torch.compile"))
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        cells = [row.subject.split()[1].replace("x", " x ")]
        cells += [number(row.times[n].median) if n in row.times else "-" for n in names]
        ratios = _ratios(row)
        cells += [f"{ratios[n]:.2f}x" if n in ratios else "-" for n in names[:2]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    for (page, section), found in sections().items():
        write_section(ROOT / "docs" / f"{page}.md", found, section)
