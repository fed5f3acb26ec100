"""The chart: speed relative to eager PyTorch as grouped horizontal bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chattn_cuda.cli.terminal import require

__all__ = ["GRID", "INK", "MUTED", "STYLE", "Panel", "draw", "save"]

INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
_GRAY, _BLUE = "#b4bcc5", "#7ba7d0"
_OURS = ("#d9480f", "#f59f00", "#2b8a3e")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "svg.hashsalt": "chattn_cuda",  # the same data make the same file
    "svg.fonttype": "none",
}


@dataclass
class Panel:
    """One group of bars.

    Attributes:
        title: Above the panel.
        rows: ``(label, {implementation: (speed relative to eager, note)}, strong)``.
    """

    title: str
    rows: list[tuple[str, Mapping[str, tuple[float, str]], bool]] = field(default_factory=list)

    def add(
        self, label: str, bars: Mapping[str, tuple[float, str]], *, strong: bool = False
    ) -> None:
        """Add a row of bars; ``strong`` sets it apart from the others."""
        self.rows.append((label, bars, strong))


def draw(path: Path, panels: Sequence[Panel], title: str, subtitle: str) -> Path:
    """Draw the panels, two in a line, to a PNG or SVG file.

    Args:
        path: Where to; the suffix says which format.
        panels: At least one.
        title: What was measured.
        subtitle: The conditions.

    Returns:
        The absolute path.

    Raises:
        UsageError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    require("the chart", ("matplotlib",))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    names = list(dict.fromkeys(n for p in panels for _, bars, _ in p.rows for n in bars))
    most = max(len(p.rows) for p in panels)
    height = 1.2 + lines * (0.62 + most * (0.16 + 0.19 * len(names)))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            lines, columns, figsize=(6.0 * columns + 0.6, height), squeeze=False, dpi=150
        )
        colours = _colours(names)
        longest = max(r for p in panels for _, bars, _ in p.rows for r, _ in bars.values())
        for i, axis in enumerate(axes.flat):
            if i < len(panels):
                _panel(axis, panels[i], names, colours, longest)
            else:
                axis.axis("off")
        top = 1 - 0.72 / height
        figure.text(0.014, 1 - 0.34 / height, title, size=14, weight="bold", color=INK)
        figure.text(0.014, 1 - 0.60 / height, subtitle, size=8.5, color=MUTED)
        handles = [plt.Rectangle((0, 0), 1, 1, color=colours[n]) for n in names]
        figure.legend(
            handles,
            names,
            loc="lower left",
            bbox_to_anchor=(0.008, 0),
            ncol=len(names),
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handlelength=1.1,
            handleheight=0.9,
        )
        figure.text(
            0.988,
            0.13 / height,
            "speed relative to eager PyTorch, longer is faster",
            size=8.5,
            color=MUTED,
            ha="right",
        )
        figure.tight_layout(rect=(0, 0.36 / height, 1, top), w_pad=2.5, h_pad=1.2)
        path = save(figure, path)
        plt.close(figure)
    return path


def save(figure: Any, path: Path) -> Path:
    """Write a figure to a PNG or SVG file, and return its absolute path."""
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, facecolor="white", metadata=metadata)
    return path


def _colours(names: Sequence[str]) -> dict[str, str]:
    ours = iter(_OURS)
    fixed = {"eager": _GRAY, "torch.compile": _BLUE}
    return {n: fixed.get(n) or next(ours, INK) for n in names}


def _panel(
    axis: Any, panel: Panel, names: Sequence[str], colours: Mapping[str, str], longest: float
) -> None:
    from matplotlib import patheffects

    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    thickness = 0.8 / len(names)
    for y, (_, bars, strong) in enumerate(panel.rows):
        if strong:
            axis.axhspan(y - 0.5, y + 0.5, color="#f5f7f9", zorder=0)
        for k, name in enumerate(n for n in names if n in bars):
            ratio, note = bars[name]
            middle = y - 0.4 + thickness * (k + 0.5)
            axis.barh(middle, ratio, 0.86 * thickness, color=colours[name], zorder=2)
            ours = name not in ("eager", "torch.compile")
            text = axis.annotate(
                "" if name == "eager" else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x",
                (ratio, middle),
                (4, 0),
                textcoords="offset points",
                va="center",
                size=8,
                weight="bold" if ours else "normal",
                color=INK,
                path_effects=halo,
                zorder=5,
            )
            axis.annotate(
                note,
                (1, 0.5),
                (5 if text.get_text() else 0, 0),
                xycoords=text,
                textcoords="offset points",
                va="center",
                size=7.5,
                color=MUTED,
                path_effects=halo,
                zorder=5,
            )
    axis.set_yticks(range(len(panel.rows)), [label for label, _, _ in panel.rows], color=INK)
    for tick, (_, _, strong) in zip(axis.get_yticklabels(), panel.rows, strict=True):
        tick.set_weight("bold" if strong else "normal")
    axis.set_ylim(len(panel.rows) - 0.5, -0.5)
    axis.set_xlim(0, max(1.5, longest) * 1.28)
    axis.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    # above the labels, too: there is no more room for block, layout and direction
    axis.set_title(panel.title, loc="left", x=-0.22, size=10.5, color=INK, weight="bold", pad=7)
    axis.tick_params(length=0, labelsize=8.5)
    axis.tick_params(axis="x", colors=MUTED)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axis.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)
