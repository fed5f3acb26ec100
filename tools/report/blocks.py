"""Blocks: their speed by map, layout and direction, and how far they are from the memory's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from report.charts import Chart
from report.models import EAGER, LAYOUTS
from report.page import Cell, Exhibit, Part, Section, Table
from report.results import Ratio, Results, Row

TITLES = {"se": "Squeeze-and-excitation", "eca": "Efficient channel attention",
          "sk": "Selective kernel", "grn": "Global response normalisation",
          "tail_a": "Tail A: batch norm + SE + addition + ReLU",
          "tail_plain": "Plain tail: batch norm + addition + ReLU",
          "tail_b": "Tail B: batch norm + SiLU + SE", "tail_pair": "Pair: batch norm + ReLU",
          }  # fmt: skip
COPY, COMPILE = "copy", "torch.compile"


def section(results: Iterable[Results]) -> Section:
    """By block."""
    text = (
        "A block alone, on the maps of a ResNet's four stages; forward rows run without gradients. "
        "Every block has an axis of its own; cpu, cuda and triton are backends of this package. A "
        "small gain of a model and a large one of its blocks are no contradiction: convolutions "
        "take most of a model's time on a CPU."
    )
    parts = []
    for run in results:
        rows = [row for row in run.rows if row.of_block and COPY not in row.times]
        exhibits = [_speed(title, mine) for title, mine in _groups(rows).items()]
        if exhibits:
            parts.append(Part(exhibits[0].chart.title.split(",")[0], "", run.source, exhibits))
    known = list(TITLES.values())
    parts.sort(key=lambda part: known.index(part.title) if part.title in known else len(known))
    why = "the blocks; <code>make bench</code> measures them."
    return Section("Blocks", text, parts or [Part(missing=why)])


def floor_section(results: Iterable[Results], counted: Sequence[dict[str, str]]) -> Section:
    """Beside a copy of the map."""
    text = (
        "A copy reads a map once and writes it once: nothing that makes a map from a map takes "
        "less. It is measured in turn with the block, so that the memory's speed is that of the "
        "same run. The charts show times in copies, measured."
    )
    parts = []
    for run in results:
        rows = [row for row in run.rows if COPY in row.times]
        exhibits = [_floor(title, mine) for title, mine in _groups(rows).items()]
        if exhibits:
            parts.append(Part("", _floors(counted), run.source, exhibits))
    why = "times beside a copy of the map; <code>python tools/bench_parts.py</code> measures them."
    return Section("Distance to the memory's floor", text, parts or [Part(missing=why)])


def _floors(counted: Iterable[dict[str, str]]) -> str:
    """What the least is, in words; it is counted, and in no chart of what is measured."""
    least = {(row["block"], row["direction"]): int(row["floor_maps"]) / 2 for row in counted}
    named = [
        f"{block.upper()} {least[block, 'forward']:g} forward and "
        f"{sum(least[block, way] for way in ('forward', 'backward')):g} in training"
        for block in ("se", "eca", "sk")
        if (block, "forward") in least
    ]
    return f"The least, counted, in copies, if every input is read once: {'; '.join(named)}."


def _groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """By block, layout and direction."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        block, shape, dtype = row.subject.split()
        name = TITLES.get(block, block)
        batch = shape.split("x")[0]
        layout = LAYOUTS.get(row.layout, row.layout)
        found.setdefault(f"{name}, {row.work}, {layout}, batch {batch}, {dtype}", []).append(row)
    return found


def _stage(row: Row) -> str:
    return row.subject.split()[1].partition("x")[2]


def _speed(title: str, rows: Sequence[Row]) -> Exhibit:
    ours = [name for name in rows[0].times if name not in (EAGER, COMPILE)]
    compared = (COMPILE, *ours)
    drawn: dict[str, dict[str, Ratio]] = {}
    lines: list[list[Cell]] = []
    for row in rows:
        t = row.times
        against = drawn[_stage(row)] = {n: Ratio.of(t[EAGER], t[n]) for n in compared if n in t}
        cells: list[Cell] = [_stage(row)]
        for name in ours:
            cells += [against.get(name)]
            cells += [Ratio.of(t[COMPILE], t[name]) if COMPILE in t and name in t else None]
        lines.append([*cells, *(t.get(n) for n in (EAGER, *compared))])
    head = ["C x H x W"]
    for name in ours:
        head += [f"{name} / eager", f"{name} / torch.compile"]
    head += [f"{name}, ms" for name in (EAGER, *compared)]
    chart = Chart(title, "times as fast as eager PyTorch, with the spread", drawn)
    return Exhibit(chart, Table(f"{title}: ms a call, and how many times as fast", head, lines))


def _floor(title: str, rows: Sequence[Row]) -> Exhibit:
    names = [name for name in rows[0].times if name != COPY]
    drawn = {
        _stage(row): {n: Ratio.of(row.times[n], row.times[COPY]) for n in names} for row in rows
    }
    lines = [
        [_stage(row), row.times[COPY], *(row.times[n] for n in names),
         *(str(drawn[_stage(row)][n]).replace("x", "") for n in names)]
        for row in rows
    ]  # fmt: skip
    head = ["C x H x W", "copy, ms", *(f"{n}, ms" for n in names), *(f"{n}, copies" for n in names)]
    axis = "copies of the map in that time, with the spread"
    chart = Chart(f"Copies: {title}", axis, drawn, line="a copy")
    return Exhibit(chart, Table(f"{title}: ms a call, and in copies of the map", head, lines))
