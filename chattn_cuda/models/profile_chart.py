"""The chart of a `GateProfile`: a panel per stage (of selective kernels two), a line per class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from chattn_cuda.cli.chart import GRID, INK, MUTED, STYLE, save
from chattn_cuda.models.compose import library

if TYPE_CHECKING:
    from chattn_cuda.models.profile import BlockProfile, GateProfile

__all__ = ["draw"]

_MOST_NAMED = 12  # classes beyond it get no legend


def draw(path: Path, profile: GateProfile, title: str) -> Path:
    """Draw the last block of every stage to a PNG or SVG file; returns the absolute path."""
    matplotlib = library("matplotlib")
    library("matplotlib.figure")
    panels = [panel for block in profile.stages for panel in _panels(block)]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    height = 1.2 + 2.5 * lines
    ramp = matplotlib.colormaps["turbo"]
    last = max(1, len(profile.classes) - 1)
    colours = [ramp(0.05 + 0.9 * i / last) for i in range(len(profile.classes))]
    with matplotlib.rc_context(STYLE):
        # Not by pyplot, whose backend belongs to the caller.
        figure = matplotlib.figure.Figure(figsize=(6.0 * columns + 0.6, height), dpi=150)
        axes = figure.subplots(lines, columns, squeeze=False)
        for axis in list(axes.flat)[len(panels) :]:
            axis.axis("off")
        handles: list[Any] = []
        for axis, (heading, unit, values) in zip(axes.flat, panels, strict=False):
            if values.dim() == 2:
                handles = _lines(axis, values, colours)
            else:
                axis.bar(range(len(values)), values.tolist(), color=colours)
                axis.set_xticks(range(len(values)) if len(values) <= _MOST_NAMED else [])
                axis.set_xticklabels(profile.classes if len(values) <= _MOST_NAMED else [])
                axis.set_xlabel("class", size=8.5, color=MUTED)
            axis.set_title(heading, loc="left", size=10, color=INK, weight="bold")
            axis.set_ylabel(unit, size=8.5, color=MUTED)
            axis.tick_params(length=0, labelsize=8.5, colors=MUTED)
            axis.grid(color=GRID, linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[:].set_visible(False)
        figure.text(0.014, 1 - 0.34 / height, title, size=14, weight="bold", color=INK)
        if len(handles) <= _MOST_NAMED:
            names = [f"class {c}" for c in profile.classes]
            figure.legend(handles, names, loc="lower left", ncol=6, frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0.5 / height, 1, 1 - 0.5 / height), w_pad=2.5, h_pad=1.2)
        return save(figure, path)


def _panels(block: BlockProfile) -> list[tuple[str, str, Tensor]]:
    """Heading, axis, and values by class and channel (classes, C) or by class (classes,)."""
    heading = f"Stage {block.stage}: {block.name}"
    difference = block.difference
    if difference is None:
        return [(heading, "mean gate", block.gates)]
    unit = f"mean gate, branch {block.gates.shape[1]} less 1"
    return [(heading, unit, difference), (f"{heading}, all channels", unit, difference.mean(1))]


def _lines(axis: Any, values: Tensor, colours: list[Any]) -> list[Any]:
    channels = range(values.shape[1])
    axis.set_xlim(0, max(1, values.shape[1] - 1))
    axis.set_xlabel("channel", size=8.5, color=MUTED)
    return [
        axis.plot(channels, row, color=colour, linewidth=0.9, alpha=0.85)[0]
        for row, colour in zip(values.tolist(), colours, strict=True)
    ]
