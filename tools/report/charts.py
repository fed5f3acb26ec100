"""Charts: small ones, each readable on a phone, as SVG for the page and as PNG.

On the page a chart's colours are the page's, light or dark: each of `COLOURS` becomes there a CSS
variable of its name.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = {
    "ink": "#1c2530", "muted": "#5a6673", "grid": "#dfe4ea", "slow": "#b42318", "ours": "#c2410c",
    "compiled": "#1f5fa8", "both": "#18794e", "eager": "#7a8694",
}  # fmt: skip
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "svg.hashsalt": "chattn_cuda",  # the same data make the same file
    "svg.fonttype": "none",
    "axes.edgecolor": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["ink"],
}
WIDTH = 4.3  # inches
# Whose figures a variant's are decides how it is drawn, in each chart alike.
_MARKS = {"ours": "o", "compiled": "s", "both": "D", "eager": "v"}


def role(variant: str) -> str:
    """Whose figures they are, by the variant's name."""
    known = {"torch.compile": "compiled", "compiled": "compiled", "both": "both", "eager": "eager"}
    return known.get(variant, "ours")


@dataclass(frozen=True)
class Chart:
    """What is drawn, and how.

    Attributes:
        title: Above it.
        axis: What the horizontal axis shows.
        rows: By label, a figure per variant: of "dots" a `Ratio`, of "bars" a number, of "stack"
            numbers by part.
        form: "dots", "bars" or "stack".
        line: Where "dots" have their line: what they are compared with.
    """

    title: str
    axis: str
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    form: str = "dots"
    line: str = "eager"

    @property
    def variants(self) -> list[str]:
        """All, in order."""
        return list(dict.fromkeys(name for bars in self.rows.values() for name in bars))

    @property
    def slug(self) -> str:
        """The name of its files."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def height(self) -> float:
        """In inches."""
        bars = max(1, len(self.variants))
        step = 0.2 + 0.13 * bars if self.form == "dots" else 0.12 + 0.15 * bars
        return 0.9 + 0.16 * len(self.heading) + 0.2 * (self.form == "stack") + len(self.rows) * step

    @property
    def heading(self) -> list[str]:
        """The title in lines that fit."""
        return textwrap.wrap(self.title, 48)

    def describe(self) -> str:
        """For those who do not see it; the figures are in the table beside."""
        return (
            f"{self.title}. Chart of {len(self.rows)} rows ({', '.join(self.rows)}), "
            f"{self.axis}: {'; '.join(map(self._range, self.variants))}. "
            "The table that follows has every figure."
        )

    def _range(self, variant: str) -> str:
        found = [bars[variant] for bars in self.rows.values() if variant in bars]
        if self.form == "dots":
            values, slow = [r.value for r in found], sum(r.slower for r in found)
            more = f", slower than {self.line} in {slow} of {len(found)} rows" if slow else ""
        else:
            values, more = [sum(v.values()) if isinstance(v, dict) else v for v in found], ""
        return f"{variant} {min(values):.3g} to {max(values):.3g}{more}"


def figure_of(chart: Chart) -> Figure:
    """The chart alone."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, chart.height), layout="constrained")
        heading = "\n".join(chart.heading)
        figure.suptitle(heading, x=0.01, ha="left", size=9.5, weight="bold")
        axis = figure.subplots()
        draw(axis, chart)
        columns = 2 if chart.form == "stack" else 4
        axis.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, frameon=False, fontsize=8,
            handlelength=1.1, columnspacing=1.1, borderpad=0.2, handletextpad=0.5,
        )  # fmt: skip
    return figure


def draw(axis: Any, chart: Chart, labels: bool = True) -> None:
    """Draw a chart into axes; its style is that of the context."""
    labelled = list(chart.rows)
    {"dots": _dots, "bars": _bars, "stack": _stack}[chart.form](axis, chart)
    axis.set_yticks(range(len(labelled)), labelled if labels else [""] * len(labelled))
    axis.set_ylim(len(labelled) - 0.5, -0.5)
    axis.set_xlabel(textwrap.fill(chart.axis, 48), size=8)
    axis.tick_params(length=0)
    axis.grid(axis="x", color=COLOURS["grid"], linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)


def _side_by_side(chart: Chart, step: float) -> Iterator[tuple[str, str, list[tuple[float, Any]]]]:
    """Each variant with its role, and where in the rows its values are; ``step`` apart."""
    names = chart.variants
    for k, name in enumerate(names):
        at = (k - (len(names) - 1) / 2) * step
        rows = enumerate(chart.rows.values())
        yield name, role(name), [(y + at, bars[name]) for y, bars in rows if name in bars]


def _dots(axis: Any, chart: Chart) -> None:
    for name, mine, found in _side_by_side(chart, 0.66 / len(chart.variants)):
        ys, ratios = [y for y, _ in found], [r for _, r in found]
        ends = [[r.value - r.low for r in ratios], [r.high - r.value for r in ratios]]
        axis.errorbar(
            [r.value for r in ratios], ys, xerr=ends, fmt=_MARKS[mine], markersize=4.2,
            color=COLOURS[mine], elinewidth=1.1, capsize=0, label=name, zorder=3,
        )  # fmt: skip
        for y, r in found if mine == "ours" else ():
            axis.annotate(
                f"{r.value:.{1 if r.value >= 10 else 2}f}x", (1.02, y),
                xycoords=axis.get_yaxis_transform(), va="center", size=8, weight="bold",
                color=COLOURS["slow" if r.slower else "ink"], annotation_clip=False,
            )  # fmt: skip
    axis.axvline(1, color=COLOURS["ink"], linewidth=1, zorder=2)
    every = [r for bars in chart.rows.values() for r in bars.values()]
    low, high = min(1.0, *(r.low for r in every)), max(1.0, *(r.high for r in every))
    room = 0.06 * (high - low)
    axis.set_xlim(max(0.0, low - room), high + room)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")


def _bars(axis: Any, chart: Chart) -> None:
    step = 0.76 / len(chart.variants)
    for name, mine, found in _side_by_side(chart, step):
        drawn = axis.barh(
            [y for y, _ in found], [v for _, v in found], 0.86 * step, color=COLOURS[mine],
            label=name,
        )  # fmt: skip
        axis.bar_label(
            drawn,
            fmt=lambda value: f"{value:.0f}" if value >= 100 else f"{value:.3g}",
            padding=3,
            size=8,
        )
    longest = max(value for bars in chart.rows.values() for value in bars.values())
    axis.set_xlim(0, 1.14 * longest)


def _stack(axis: Any, chart: Chart) -> None:
    names, shades = chart.variants, ("eager", "compiled", "ours", "both", "grid")
    parts = list(dict.fromkeys(p for bars in chart.rows.values() for v in bars.values() for p in v))
    step = 0.76 / len(names)
    for i, part in enumerate(parts):
        for k, name in enumerate(names):
            at = (k - (len(names) - 1) / 2) * step
            for y, bars in enumerate(chart.rows.values()):
                before = sum(bars[name].get(p, 0.0) for p in parts[:i])
                own = bars[name].get(part, 0.0)
                axis.barh(
                    y + at, own, 0.86 * step, left=before, color=COLOURS[shades[i]],
                    label=part if (k, y) == (0, 0) else None,
                )  # fmt: skip
                if part == parts[-1]:
                    axis.annotate(
                        name, (before + own, y + at), (3, 0), size=7.5, va="center",
                        textcoords="offset points", color=COLOURS["muted"],
                    )  # fmt: skip
    longest = max(sum(v.values()) for bars in chart.rows.values() for v in bars.values())
    axis.set_xlim(0, 1.22 * longest)


# ---- as files -----------------------------------------------------------------------------------
def svg(chart: Chart, number: int) -> str:
    """For the page, without a header; ids are the number's, colours and font the page's."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure_of(chart).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>c{number}-", text)
    text = text.replace("'DejaVu Sans'", "system-ui, sans-serif")  # narrower, if anything
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', text)
    return text.strip()


def png(chart: Chart, path: Path, note: str) -> Path:
    """For documents and slides: light, with a line about it."""
    return save(figure_of(chart), path, note)


def save(figure: Figure, path: Path, note: str) -> Path:
    """Write a PNG with its conditions below."""
    with matplotlib.rc_context(STYLE):
        lines = textwrap.fill(note, int(18 * figure.get_figwidth()))
        figure.supxlabel(lines, size=6.5, color=COLOURS["muted"], x=0.01, ha="left")
        figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    return path


def grid(charts: Sequence[Sequence[Chart]], path: Path, note: str) -> Path:
    """Several dot charts in one picture; those of a line have one list of rows."""
    with matplotlib.rc_context(STYLE):
        height = sum(0.75 * line[0].height for line in charts) + 0.7
        figure = Figure(figsize=(10.4, height), layout="constrained")
        axes = figure.subplots(len(charts), len(charts[0]), squeeze=False)
        for line, drawn in zip(charts, axes, strict=True):
            for i, (chart, axis) in enumerate(zip(line, drawn, strict=True)):
                draw(axis, chart, labels=i == 0)
                axis.set_title(chart.title, loc="left", size=9.5, weight="bold")
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return save(figure, path, note)
