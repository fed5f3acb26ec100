"""Maps that the CUDA kernels move, counted, and what they predict for GPUs by name."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import predict_models
from predict_models import BANDWIDTH, VARIANTS

from report.charts import Chart
from report.models import LAYOUTS
from report.page import Exhibit, Part, Section, Table
from report.results import BENCH, COUNTED, PREDICTED, Source

TABLE = BENCH / "counted.csv"
COMMAND = "python -m tests.counted"
NAMES = {"se": "SE", "eca": "ECA", "grn": "GRN", "sk": "SK, its two passes",
         "sk_block": "SK, whole", "tail": "BN + SE + add + ReLU"}  # fmt: skip
PREDICTED_AT = (128, 56)  # batch; height of the map
WAYS = {"forward": ("forward",), "training": ("forward", "backward")}

Row = dict[str, str]


def read(path: Path = TABLE) -> list[Row]:
    """The committed table; nothing where there is none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def section(rows: Sequence[Row]) -> Section:
    """Counted: eager, ours, and launches."""
    text = (
        "How often a block reads or writes a feature map on a GPU; time there is little else. The "
        "CUDA kernels are executed on a CPU, which counts what they ask for; eager PyTorch's maps "
        "are those of its operations. Training is forward and backward."
    )
    if not rows:
        return Section(
            "Maps moved on CUDA", text, [Part(missing=f"<code>{COMMAND} --write</code>.")]
        )
    first = rows[0]
    conditions = (
        f"kernels planned for sm_{first['sm']}, {first['dtype']}, batch "
        f"{first['shape'].partition('x')[0]}; the repository's, which its tests compare"
    )
    exhibits = [
        _exhibit(
            f"Maps of {height} x {height}, {' and '.join(LAYOUTS[name] for name in layouts)}", mine
        )
        for height, layouts, mine in _distinct(rows)
    ]
    source = Source(COUNTED, conditions, COMMAND, committed=True)
    return Section("Maps moved on CUDA", text, [Part("", "", source, exhibits)])


def _distinct(rows: Sequence[Row]) -> Iterator[tuple[str, list[str], list[Row]]]:
    """By height of the map; layouts of which the same is counted are one."""
    for height in dict.fromkeys(row["shape"].split("x")[2] for row in rows):
        alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
        for layout in dict.fromkeys(row["layout"] for row in rows):
            mine = _of(rows, height, layout)
            alike.setdefault(tuple((r["maps"], r["launches"]) for r in mine), []).append(layout)
        for layouts in alike.values():
            yield height, layouts, _of(rows, height, layouts[0])


def _of(rows: Sequence[Row], height: str, layout: str) -> list[Row]:
    return [r for r in rows if r["layout"] == layout and r["shape"].split("x")[2] == height]


def _total(rows: Sequence[Row], block: str, ways: Sequence[str], name: str) -> float:
    return sum(float(r[name]) for r in rows if r["block"] == block and r["direction"] in ways)


def _exhibit(title: str, rows: Sequence[Row]) -> Exhibit:
    drawn, lines = {}, []
    for block in dict.fromkeys(row["block"] for row in rows):
        for way, ways in WAYS.items():
            eager, ours, least, launches = (
                _total(rows, block, ways, name)
                for name in ("eager_maps", "maps", "floor_maps", "launches")
            )
            label = f"{NAMES.get(block, block)}, {way}"
            drawn[label] = {"eager": eager, "chattn_cuda": ours}
            lines.append([label, *(f"{n:.3g}" for n in (eager, ours, least, launches))])
    chart = Chart(title, "feature maps read and written", drawn, "bars")
    head = ["", "eager", "chattn_cuda", "every input read once", "launches of chattn_cuda"]
    return Exhibit(chart, Table(f"{title}: maps, and launches of kernels", head, lines))


def predicted(rows: Sequence[Row], models: Sequence[Row]) -> Section:
    """From counted bytes and published bandwidth.

    Args:
        rows: Of the blocks.
        models: Of whole models.
    """
    text = (
        "Bytes of the maps above over the bandwidth that NVIDIA publishes: no GPU was asked, and "
        "none reaches it. On the one H100 that was measured, a copy ran at 2.97 TB/s of 3.35, and "
        "a call takes its launches besides (docs/gpu.md, docs/gpu-model.md): small maps are bound "
        "by those."
    )
    return Section("Predicted for GPUs", text, [_of_blocks(rows), _of_models(models)])


def _of_blocks(rows: Sequence[Row]) -> Part:
    n, height = PREDICTED_AT
    mine = _of(rows, str(height), "channels_last")
    if not mine:
        return Part("Blocks", missing=f"<code>{COMMAND} --write</code>.")
    exhibits = []
    for block in dict.fromkeys(row["block"] for row in mine):
        c = next(int(r["shape"].split("x")[1]) for r in mine if r["block"] == block)
        size = 2 * math.prod((n, c, height, height))  # of a map in bfloat16
        maps = {
            name: _total(mine, block, WAYS["training"], name) for name in ("eager_maps", "maps")
        }
        drawn = {
            gpu: {
                name: 1e6 * maps[key] * size / bandwidth
                for name, key in (("eager", "eager_maps"), ("chattn_cuda", "maps"))
            }
            for gpu, bandwidth in BANDWIDTH.items()
        }
        title = f"{NAMES.get(block, block)}, training, {n}x{c}x{height}x{height}"
        chart = Chart(title, "us at the published bandwidth, predicted", drawn, "bars")
        lines = [
            [gpu, f"{BANDWIDTH[gpu] / 1e12:g}", *(f"{us:.0f}" for us in bars.values())]
            for gpu, bars in drawn.items()
        ]
        head = ["", "published, TB/s", *(f"{name}, us" for name in drawn["L4"])]
        exhibits.append(Exhibit(chart, Table(f"{title}: us, predicted", head, lines)))
    conditions = (
        f"bfloat16, channels_last, batch {n}; maps as counted above, at batch {mine[0]['shape'][0]}"
    )
    return Part("Blocks", "", Source(PREDICTED, conditions, "make report"), exhibits)


def _of_models(rows: Sequence[Row]) -> Part:
    """Outside of the convolutions."""
    title = "Whole models, outside of their convolutions"
    if not rows:
        return Part(title, missing="<code>python tools/count_models.py --write</code>.")
    gpu = next(iter(BANDWIDTH))
    exhibits = []
    for work in predict_models.WORKS:
        mine = [r for r in rows if r["work"] == work and r["model"] in predict_models.MODELS]
        drawn = {
            row["model"]: {t: predict_models.ms(row, v, gpu) for v, t in VARIANTS.items()}
            for row in mine
        }
        name = f"{work[0].upper()}{work[1:]}, batch {mine[0]['batch']}, without the convolutions"
        chart = Chart(f"{name}, {gpu}", "ms at the published bandwidth, predicted", drawn, "bars")
        lines = [
            [f"{row['model']}, {gpu}", *(f"{predict_models.ms(row, v, gpu):.3g}" for v in VARIANTS)]
            for row in mine
            for gpu in BANDWIDTH
        ]
        head = ["", *(f"{title}, ms" for title in VARIANTS.values())]
        exhibits.append(Exhibit(chart, Table(f"{name}: ms, predicted", head, lines)))
    off = predict_models.errors(rows)
    text = (
        "All that a model reads and writes outside of its convolutions: eager PyTorch; its tails "
        "as torch.compile runs them; accelerated, with tails where maps are large; and with a tail "
        "wherever there can be one. Launches, the host, types that are converted and caches are "
        f"left out. Of {len(off)} figures that were measured, the same prediction is "
        f"{min(off):+.0%} to {max(off):+.0%} off (docs/gpu-model.md)."
    )
    conditions = f"{rows[0]['dtype']}, 224 x 224 images, batch {rows[0]['batch']}"
    return Part(title, text, Source(PREDICTED, conditions, predict_models.COMMAND), exhibits)
