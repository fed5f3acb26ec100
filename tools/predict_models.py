"""What whole models should take on GPUs outside of their convolutions, and how far off that is.

    python tools/predict_models.py            the tables
    python tools/predict_models.py --write    those of docs/gpu-model.md

Predicted: bytes of bench/counted_models.csv (tools/count_models.py) over the bandwidth that NVIDIA
publishes. It leaves out launches and the host, weights of convolutions and of the optimizer, what
autocast converts, and that small maps come back from the caches. Beside it stands what a network
takes more than the same one without attention, by measurements of others and ours.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "bench" / "counted_models.csv"
PAGE = ROOT / "docs" / "gpu-model.md"
SECTION = "models"  # of the page
COMMAND = "python tools/predict_models.py"
# Memory bandwidth in bytes a second as NVIDIA's data sheets have it.
BANDWIDTH = {
    "H100 SXM 80 GB": 3.35e12,
    "A100 SXM 80 GB": 2.039e12,
    "GeForce RTX 4090": 1.008e12,
    "L4": 0.3e12,
}
RTX_3090 = 0.936e12
MODELS = ("seresnet50", "resnet50", "efficientnet_b0", "ecaresnet50d", "mobilenetv3_large_100",
          "regnety_032", "skresnet50")  # fmt: skip
# In comparisons with what others published.
BESIDE = ("resnet50d", "seresnext101_32x4d", "resnext101_32x4d")
WORKS = ("training", "inference")
#: columns of the table, with their titles
VARIANTS = {"eager": "eager", "compiled": "torch.compile", "tails": "chattn_cuda",
            "all": "chattn_cuda, all tails"}  # fmt: skip

Row = dict[str, str]


def read() -> list[Row]:
    """The committed table; nothing where there is none."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def ms(row: Row, variant: str, gpu: str) -> float:
    """Milliseconds of a step outside of the convolutions."""
    return 1e3 * int(row[variant]) / BANDWIDTH[gpu]


@dataclass(frozen=True)
class Attention:
    """What attention takes more, measured: a network beside the same one without.

    Attributes:
        where: Device, layout and version of torch.
        bandwidth: Of the device.
        name: The network.
        plain: Without attention.
        work: Training or inference.
        variant: A column of the table.
        measured: Microseconds an image, of both.
        source: Who measured it.
    """

    where: str
    bandwidth: float
    name: str
    plain: str
    work: str
    variant: str
    measured: tuple[float, float]
    source: str

    def predicted(self, rows: Sequence[Row]) -> float:
        """Microseconds an image more."""
        found = {row["model"]: row for row in rows if row["work"] == self.work}
        name, plain = found[self.name], found[self.plain]
        more = int(name[self.variant]) - int(plain[self.variant])
        return 1e6 * more / int(name["batch"]) / self.bandwidth

    @property
    def more(self) -> float:
        """The same, measured."""
        return self.measured[0] - self.measured[1]


TIMM = "https://github.com/huggingface/pytorch-image-models/blob/main/results"
INFER = f"[timm]({TIMM}/benchmark-infer-amp-nchw-pt291-cu128-4090.csv)"
DYNAMO = f"[timm]({TIMM}/benchmark-infer-amp-nchw-pt291-cu128-4090-dynamo.csv)"
TRAIN = "[timm]({}/benchmark-train-amp-{}-pt112-cu113-rtx3090.csv)"
NVIDIA = (
    "[NVIDIA](https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/Classification/"
    "ConvNets/se-resnext101-32x4d)"
)
OURS = "[ours](gpu.md#state)"
_H100 = "H100, channels_last, torch 2.11"
_A100 = "A100 80 GB, mixed precision"
_4090, _3090 = "RTX 4090, NCHW, torch 2.9", "RTX 3090, {}, torch 1.12"
_SE, _ECA = ("seresnet50", "resnet50"), ("ecaresnet50d", "resnet50d")
_X101 = "seresnext101_32x4d", "resnext101_32x4d"
_FAST = BANDWIDTH["H100 SXM 80 GB"], BANDWIDTH["A100 SXM 80 GB"], BANDWIDTH["GeForce RTX 4090"]


def _per_second(*rates: float) -> tuple[float, float]:
    return 1e6 / rates[0], 1e6 / rates[1]


PUBLISHED = (
    Attention(_H100, _FAST[0], *_SE, "training", "eager", (51.3e3 / 128, 36.0e3 / 128), OURS),
    Attention(_H100, _FAST[0], *_SE, "inference", "eager", (13.8e3 / 128, 10.8e3 / 128), OURS),
    Attention(_A100, _FAST[1], *_X101, "training", "eager", _per_second(855, 1211), NVIDIA),
    Attention(_4090, _FAST[2], *_SE, "inference", "eager", _per_second(3719.34, 4302.84), INFER),
    Attention(_4090, _FAST[2], *_ECA, "inference", "eager", _per_second(3542.53, 4063.89), INFER),
    Attention(_4090, _FAST[2], *_SE, "inference", "compiled", _per_second(6261.94, 8039.05),
              DYNAMO),
    Attention(_4090, _FAST[2], *_ECA, "inference", "compiled", _per_second(5895.15, 7440.05),
              DYNAMO),
    *(
        Attention(_3090.format(title), RTX_3090, *pair, "training", "eager", _per_second(*rates),
                  TRAIN.format(TIMM, layout))
        for layout, title, pair, rates in (
            ("nhwc", "channels_last", _SE, (971.79, 1218.01)),
            ("nhwc", "channels_last", _ECA, (862.65, 1078.0)),
            ("nchw", "NCHW", _SE, (714.65, 826.06)),
            ("nchw", "NCHW", _ECA, (643.9, 744.99)),
        )
    ),
)  # fmt: skip


# Tails of 128x256x56x56 in bfloat16 on the H100 of docs/gpu.md: maps counted, and us measured.
MAP_BYTES = 2 * 128 * 256 * 56 * 56
TAILS = {
    ("SE", "inference", "eager"): (10, 924.0), ("SE", "inference", "compiled"): (5, 376.0),
    ("SE", "training", "eager"): (28, 3535.0), ("SE", "training", "compiled"): (15, 1900.0),
    ("plain", "inference", "eager"): (7, 539.0), ("plain", "inference", "compiled"): (3, 206.0),
    ("plain", "training", "eager"): (16, 1596.0), ("plain", "training", "compiled"): (12, 863.0),
}  # fmt: skip


def _predicted_lines(rows: Sequence[Row]) -> Iterator[str]:
    for work in WORKS:
        mine = {row["model"]: row for row in rows if row["work"] == work}
        yield f"{work[0].upper()}{work[1:]}, batch {rows[0]['batch']}, predicted:"
        yield ""
        yield "| ms: " + " / ".join(VARIANTS.values()) + f" | {' | '.join(BANDWIDTH)} |"
        yield f"|---{'|---:' * len(BANDWIDTH)}|"
        for name in MODELS:
            cells = (
                " / ".join(f"{ms(mine[name], variant, gpu):.3g}" for variant in VARIANTS)
                for gpu in BANDWIDTH
            )
            yield f"| {name} | {' | '.join(cells)} |"
        yield ""


def _attention_lines(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | | | whole image, us | attention, measured | predicted | error |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for a in PUBLISHED:
        predicted = a.predicted(rows)
        cells = (
            f"{a.where} ({a.source})", a.name, f"{a.work}, {VARIANTS[a.variant]}",
            f"{a.measured[0]:.0f}", f"{a.more:.1f}", f"{predicted:.1f}",
            f"{predicted / a.more - 1:+.0%}",
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _tail_lines() -> Iterator[str]:
    yield "| BN + [SE] + add + ReLU | maps, counted | predicted, us | measured, us | error |"
    yield "|---|---:|---:|---:|---:|"
    for (kind, work, variant), (maps, us) in TAILS.items():
        predicted = 1e6 * maps * MAP_BYTES / BANDWIDTH["H100 SXM 80 GB"]
        cells = f"{kind}, {work}, {VARIANTS[variant]}", f"{maps}", f"{predicted:.0f}", f"{us:.0f}"
        yield f"| {' | '.join(cells)} | {predicted / us - 1:+.0%} |"


def errors(rows: Sequence[Row]) -> list[float]:
    """Of what is measured, predicted over measured less 1: attention in networks, then tails."""
    found = [a.predicted(rows) / a.more - 1 for a in PUBLISHED]
    speed = BANDWIDTH["H100 SXM 80 GB"]
    return found + [1e6 * maps * MAP_BYTES / speed / us - 1 for maps, us in TAILS.values()]


def markdown(rows: Sequence[Row]) -> str:
    """The tables of docs/gpu-model.md."""
    lines = [*_predicted_lines(rows), "What attention takes, microseconds an image:", ""]
    lines += [*_attention_lines(rows), "", "Tails of 128x256x56x56 on the H100 of docs/gpu.md:", ""]
    return "\n".join([*lines, *_tail_lines()]).replace("| -", "| \u2212") + "\n"


def main() -> int:
    """Print the tables, or write them into the page."""
    text = markdown(read())
    if "--write" not in sys.argv[1:]:
        print(text)
        return 0
    from bench_models import write_section

    write_section(PAGE, text, SECTION)
    return 0


if __name__ == "__main__":
    sys.exit(main())
