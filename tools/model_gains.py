"""Tables of docs/gains.md and docs/benchmarks.md, from published results of tools/bench_models.py.

    python tools/model_gains.py        writes them; behind new results in bench/published/

Of docs/gains.md: a ratio is the baseline's median over ours; behind it stands what the quartiles of
both allow. It is bold where they do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench_models import LAYOUTS, ROOT, conditions, markdown, write_section
from gpu_results import Record, read
from gpu_summary import Comparison, comparisons, geometric_mean

PUBLISHED = ROOT / "bench" / "published"
WORKS = ("inference, batch 1", "inference, batch 8", "training, batch 8")
TITLES = {
    ("accelerated", False): 'accelerate(model, fuse="block"), against eager PyTorch',
    ("both", False): "torch.compile(accelerated model), against torch.compile(model)",
    ("accelerated", True): "accelerate(model), against eager PyTorch",
}


def sections() -> dict[str, str]:
    """By page of docs/."""
    gains = text(sorted(PUBLISHED.glob("*.jsonl")))
    return {"gains": gains, "benchmarks": markdown(read(PUBLISHED / "models-cpu-blocks.jsonl"))}


def text(paths: Iterable[Path]) -> str:
    """The tables of docs/gains.md."""
    lines: list[str] = []
    by_kind: dict[tuple[str, bool], list[list[Record]]] = {}
    for path in paths:
        records = read(path)
        for name in dict.fromkeys(c.name for c in comparisons(records)):
            tails = "--fuse tail" in conditions(records)["command"]
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


if __name__ == "__main__":
    for page, section in sections().items():
        write_section(ROOT / "docs" / f"{page}.md", section)
