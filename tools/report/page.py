"""The page: one file of HTML with its style and its charts inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from gpu_results import Times
from gpu_summary import number

from report import charts
from report.charts import Chart
from report.results import Ratio, Source

STYLE = Path(__file__).with_name("style.css")
Cell = str | Ratio | Times | None


@dataclass(frozen=True)
class Table:
    """Beside a chart, or alone.

    Attributes:
        caption: What its figures are.
        head: Titles of the columns.
        rows: Cells; the first is the row's title.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass
class Exhibit:
    """A chart with its table, and its number on the page."""

    chart: Chart
    table: Table
    number: int = 0


@dataclass
class Part:
    """Of a section: figures of one source, or why there are none.

    Attributes:
        title: Its heading; empty: the section's is enough.
        text: What it shows, in sentences.
        source: What the figures come with.
        exhibits: In order.
        missing: The command that makes what is not there.
    """

    title: str = ""
    text: str = ""
    source: Source | None = None
    exhibits: list[Exhibit] = field(default_factory=list)
    missing: str = ""


@dataclass
class Section:
    """A heading of the page."""

    title: str
    text: str
    parts: list[Part]

    @property
    def slug(self) -> str:
        """Where links go."""
        return self.title.lower().replace(" ", "-").replace("'", "")


def html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """All of it."""
    links = "".join(f'<li><a href="#{s.slug}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(map(_section, sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{escape(title)}</h1>\n{lead}<nav aria-label="Sections"><ul>{links}</ul>'
        f"</nav>\n</header>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = "".join(map(_part, section.parts))
    head = f'<h2 id="{section.slug}">{escape(section.title)}</h2>\n<p>{section.text}</p>\n'
    return f'<section aria-labelledby="{section.slug}">\n{head}{parts}</section>\n'


def _part(part: Part) -> str:
    lines = [f"<h3>{escape(part.title)}</h3>"] if part.title else []
    lines += [f"<p>{part.text}</p>"] if part.text else []
    if part.missing:
        lines.append(f'<p class="missing">Not in these results: {part.missing}</p>')
    if part.source:
        lines.append(_source(part.source))
    lines += map(_exhibit, part.exhibits)
    return "\n".join(lines) + "\n"


def _source(source: Source) -> str:
    spread = f" Spreads: {escape(source.spread)}; ±: half of their distance." * bool(source.spread)
    committed = " These figures came with the repository." if source.committed else ""
    return (
        f'<p class="source"><span class="kind">{source.kind}</span>{escape(source.conditions)}; by '
        f"<code>{escape(source.command)}</code>.{spread}{committed}</p>"
    )


def _exhibit(exhibit: Exhibit) -> str:
    chart = exhibit.chart
    label = escape(chart.describe(), quote=True)
    drawn = charts.svg(chart, exhibit.number).replace(
        "<svg ", f'<svg role="img" aria-label="{label}" ', 1
    )
    return f"<figure>\n<div>{drawn}</div>\n{_table(exhibit.table)}\n</figure>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in table.head)
    rows = "".join(f"<tr>{_row(cells)}</tr>\n" for cells in table.rows)
    caption = escape(table.caption)
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{caption}"><table>'
        f"<caption><span>{caption}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>"
        "</table></div>"
    )


def _row(cells: Iterable[Cell]) -> str:
    first, *others = cells
    return f'<th scope="row">{escape(str(first))}</th>' + "".join(map(_cell, others))


def _cell(cell: Cell) -> str:
    if cell is None:
        return "<td>-</td>"
    if isinstance(cell, Times):
        half = (cell.high - cell.low) / 2 / cell.median
        return f"<td>{number(cell.median)} ± {half:.0%}</td>"
    if isinstance(cell, Ratio):
        verdict = " slower" if cell.slower else ""
        kind = "slow" if cell.slower else "clear" if cell.clear else ""
        return f'<td class="{kind}">{cell}{verdict}</td>' if kind else f"<td>{cell}</td>"
    return f"<td>{escape(cell)}</td>"
