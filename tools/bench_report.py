"""One page of what was measured, counted and predicted, and its charts as pictures.

    make report                            or: python tools/bench_report.py
    python tools/bench_report.py --readme docs/models.png      and the first chart of the README

It reads what `make bench`, `make bench-models` and tools/bench_parts.py have left in bench/results,
and for what is not there bench/published. It measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import predict_models
from report import blocks, charts, counted, models, page
from report.charts import Chart
from report.page import Exhibit, Section
from report.results import LATEST, PUBLISHED, Results, Source, read_all

OUT = Path(__file__).resolve().parents[1] / "build" / "report"
TITLE = "chattn_cuda: what it gains, and where it loses"
LEAD = (
    "<p>Channel attention for PyTorch, fused. Figures are of three kinds, never in one chart: "
    "<strong>measured</strong> on the device named beside them, <strong>counted</strong> in the "
    "kernels, and <strong>predicted</strong> from what was counted. Ratios say how many times as "
    "fast; below 1 is slower.</p>\n"
)


def sections(results: Sequence[Results]) -> list[Section]:
    """The page's, in order."""
    table = counted.read()
    return [
        models.section(results),
        models.time_section(results),
        blocks.section(results),
        blocks.floor_section(results, table),
        counted.section(table),
        counted.predicted(table, predict_models.read()),
    ]


def numbered(found: Sequence[Section]) -> list[tuple[Source, Exhibit]]:
    """All charts of the page with their sources; sets their numbers."""
    parts = [part for section in found for part in section.parts]
    exhibits = [(part.source, e) for part in parts if part.source for e in part.exhibits]
    for number, (_, exhibit) in enumerate(exhibits, 1):
        exhibit.number = number
    return exhibits


def readme_charts(results: Sequence[Results]) -> tuple[list[list[Chart]], str]:
    """Whole models, a line of charts per layout, and their conditions.

    Raises:
        SystemExit: There are none.
    """
    runs = models.of_models(results)
    if not runs:
        raise SystemExit("no whole models: make bench-models")
    lines: dict[str, list[Chart]] = {}
    for (work, layout), rows in models.groups(runs[0].rows).items():
        chart = models.speed_chart(models.title_of(work, layout), rows)
        lines.setdefault(layout, []).append(chart)
    return list(lines.values()), str(runs[0].source)


def write(results: Sequence[Results], folder: Path) -> Path:
    """The page and its pictures; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9]-*.png"):
        old.unlink()
    found = sections(results)
    for source, exhibit in numbered(found):
        chart = exhibit.chart
        charts.png(chart, folder / f"{exhibit.number:02}-{chart.slug}.png", str(source))
    path = folder / "index.html"
    path.write_text(page.html(TITLE, LEAD, found))
    return path


def main(arguments: Sequence[str]) -> int:
    """Read and draw.

    Raises:
        SystemExit: A file holds no results.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=LATEST, help="folder (bench/results)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder (build/report)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="draw the README's chart, too")
    options = parser.parse_args(arguments)
    try:
        results = read_all([options.results, PUBLISHED])
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if options.readme:
        lines, note = readme_charts(results)
        charts.grid(lines, options.readme, note)
    print(f"wrote {write(results, options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
