"""Whole models: their time and memory, what attention costs, and where the time goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bench_models import fuses_tails
from gpu_summary import geometric_mean

from report.charts import Chart
from report.page import Cell, Exhibit, Part, Section, Table
from report.results import Ratio, Results, Row

EAGER, OURS, COMPILED, BOTH = "eager", "accelerated", "compiled", "both"
PLAIN = {"seresnet50": "resnet50", "skresnet50": "resnet50"}  # the same network without attention
LAYOUTS = {"channels_last": "channels_last", "nchw": "NCHW"}


def of_models(results: Iterable[Results]) -> list[Results]:
    """The runs with whole models; the plain call of accelerate first."""
    found = [r for r in results if any(row.of_model for row in r.rows)]
    return sorted(found, key=lambda r: (not fuses_tails(r.source.command), r.name))


def _alone(command: str) -> str:
    """What to add to a title."""
    return "" if fuses_tails(command) else ", blocks alone"


def groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """By work and layout; channels_last first, and training."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.work, row.layout), []).append(row)
    return dict(sorted(found.items(), key=lambda item: (item[0][1], _order(item[0][0]))))


def _order(work: str) -> tuple[bool, int]:
    verb, _, batch = work.partition(", batch ")
    return verb != "training", -int(batch)


def title_of(work: str, layout: str) -> str:
    """Of a chart."""
    return f"{work[0].upper()}{work[1:]}, {LAYOUTS.get(layout, layout)}"


def ratios(rows: Iterable[Row], base: str = EAGER) -> dict[str, dict[str, Ratio]]:
    """By model and variant, relative to one variant."""
    return {
        row.subject: {
            name: Ratio.of(row.times[base], times)
            for name, times in row.times.items()
            if name != base
        }
        for row in rows
        if base in row.times
    }


def speed_chart(title: str, rows: Iterable[Row]) -> Chart:
    """Every variant relative to eager."""
    return Chart(title, "times as fast as eager PyTorch, with the spread", ratios(rows))


def speed(title: str, rows: Sequence[Row]) -> Exhibit:
    """The chart, and all times."""
    compiled = any(COMPILED in row.times for row in rows)
    head = ["", "accelerated / eager", "eager, ms", "accelerated, ms"]
    head += ["compiled, ms", "both, ms", "both / compiled"] * compiled
    lines = []
    for row in rows:
        get = row.times.get
        cells = [row.subject, _ratio(row, EAGER, OURS), get(EAGER), get(OURS)]
        cells += [get(COMPILED), get(BOTH), _ratio(row, COMPILED, BOTH)] if compiled else []
        lines.append(cells)
    caption = f"{title}: ms a call, and how many times as fast"
    return Exhibit(speed_chart(title, rows), Table(caption, head, lines))


def _ratio(row: Row, base: str, name: str) -> Ratio | None:
    if base not in row.times or name not in row.times:
        return None
    return Ratio.of(row.times[base], row.times[name])


def prices(rows: Sequence[Row], command: str) -> Iterator[Exhibit]:
    """What attention costs: a network beside the plain one in eager PyTorch."""
    for name, plain in PLAIN.items():
        drawn: dict[str, dict[str, Ratio]] = {}
        lines = []
        for (work, layout), mine in groups(rows).items():
            by_name = {row.subject: row for row in mine}
            if name in by_name and plain in by_name:
                base, times = by_name[plain].times[EAGER], by_name[name].times
                title = title_of(work, layout)
                drawn[title] = {k: Ratio.of(base, times[k]) for k in (EAGER, OURS) if k in times}
                lines.append((title, base, *(times.get(k) for k in (EAGER, OURS)),
                              *(drawn[title].get(k) for k in (EAGER, OURS))))  # fmt: skip
        if drawn:
            alone = _alone(command)
            chart = Chart(
                f"{name}{alone} beside plain {plain}",
                f"times as fast as eager {plain}",
                drawn,
                line=f"eager {plain}",
            )
            head = ["", f"eager {plain}, ms", "eager, ms", "accelerated, ms",
                    f"eager / {plain}", f"accelerated / {plain}"]  # fmt: skip
            yield Exhibit(chart, Table(chart.title, head, lines))


def memory(rows: Iterable[Row]) -> Iterator[Exhibit]:
    """Peak memory, where it was looked at."""
    for (work, layout), mine in groups(rows).items():
        drawn = {
            row.subject: {
                n: t.median if row.of_memory else t.gib
                for n, t in row.times.items()
                if row.of_memory or t.gib is not None
            }
            for row in mine
        }
        drawn = {name: bars for name, bars in drawn.items() if bars}
        if drawn:
            chart = Chart(f"Memory: {title_of(work, layout)}", "peak GiB of a call", drawn, "bars")
            lines = [
                (n, *(f"{bars[v]:.2f}" if v in bars else None for v in chart.variants))
                for n, bars in drawn.items()
            ]
            yield Exhibit(chart, Table(f"{chart.title}, GiB", ["", *chart.variants], lines))


def summary(rows: Sequence[Row]) -> str:
    """For a reader in haste: means, and what is slower beyond the spread."""
    sentences = []
    for (work, layout), mine in groups(rows).items():
        found = [r for row in mine if (r := _ratio(row, EAGER, OURS)) is not None]
        if found:
            mean = geometric_mean([r.value for r in found])
            slow = sum(r.slower for r in found)
            lost = f", slower beyond the spread in {slow} of {len(found)}" * bool(slow)
            ends = f"{min(r.value for r in found):.2f} to {max(r.value for r in found):.2f}"
            sentences.append(f"{title_of(work, layout)} {mean:.2f}x ({ends}{lost})")
    return f"Geometric means over the models, and the range: {'; '.join(sentences)}."


def section(results: Sequence[Results]) -> Section:
    """The first of the page."""
    parts = []
    for run in of_models(results):
        alone = _alone(run.source.command)
        call = 'accelerate(model, fuse="block")' if alone else "accelerate(model)"
        rows = [row for row in run.rows if row.of_model]
        verbs = " and ".join(dict.fromkeys(row.work.split(",")[0] for row in rows))
        exhibits = [speed(f"{title_of(*key)}{alone}", g) for key, g in groups(rows).items()]
        exhibits += [*prices(rows, run.source.command), *memory(rows)]
        parts.append(Part(f"{call}: {verbs}", summary(rows), run.source, exhibits))
    if not parts:
        parts = [Part(missing="whole models; <code>make bench-models</code> measures them.")]
    parts += _memory_parts(results)
    text = (
        "What a user gets: networks of timm, unchanged in eager PyTorch, with "
        "<code>chattn_cuda.accelerate</code>, under torch.compile, and with both. A dot is the "
        "ratio of two medians; its line goes from the least to the most that the spreads of both "
        "allow. Where that line crosses 1, the difference is within the spread; losses are red."
    )
    return Section("Whole models", text, parts)


def _memory_parts(results: Iterable[Results]) -> list[Part]:
    text = (
        "What torch's allocator has handed out at once in a training step, with the weights. "
        "Memory of convolutions' libraries is not in it. The weights and their gradients are the "
        "same in all variants."
    )
    why = "peak memory of training; <code>python tools/model_memory.py</code> measures it on a CPU."
    found = ((run, list(memory([r for r in run.rows if r.of_memory]))) for run in results)
    return _parts("Peak memory", text, found, why)


def _parts(
    title: str, text: str, found: Iterable[tuple[Results, list[Exhibit]]], why: str
) -> list[Part]:
    """A part for each run that has something to show; without any, what is missing."""
    parts = [Part(title, text, run.source, exhibits) for run, exhibits in found if exhibits]
    return parts or [Part(title, missing=why)]


def time_section(results: Iterable[Results]) -> Section:
    """Where a model's time goes, before and after."""
    text = (
        "Milliseconds of a call by part, under torch's profiler, which slows small operations "
        "down: the shares count. Convolutions are not this package's; what is left is batch norms, "
        "activations and additions between them, and the attention blocks."
    )
    why = "the parts of a model's time; <code>python tools/bench_parts.py</code> measures them."
    of_parts = ((run, groups([row for row in run.rows if row.part])) for run in results)
    found = (
        (run, [time_exhibit(title_of(*key), mine) for key, mine in rows.items()])
        for run, rows in of_parts
    )
    return Section("Where a model's time goes", text, _parts("", "", found, why))


def time_exhibit(title: str, rows: Sequence[Row]) -> Exhibit:
    """A bar per variant, in pieces."""
    drawn: dict[str, dict[str, dict[str, float]]] = {}
    lines: list[list[Cell]] = []
    for row in rows:
        for name, times in row.times.items():
            drawn.setdefault(row.subject, {}).setdefault(name, {})[row.part] = times.median
        eager, ours = row.times.get(EAGER), row.times.get(OURS)
        ratio = Ratio.of(eager, ours) if eager and ours else None
        lines.append([f"{row.subject}: {row.part}", eager, ours, ratio])
    chart = Chart(f"Parts: {title}", "ms a call", drawn, "stack")
    head = ["", "eager, ms", "accelerated, ms", "accelerated / eager"]
    return Exhibit(chart, Table(f"{chart.title}, ms", head, lines))
