"""Train small networks on scikit-learn's digits, eager and accelerated, from the same weights.

An SE-ResNet, an ECA-ResNet and an SKNet of timm learn images of 8 x 8 pixels from scratch, each
twice: as it is, and after `chattn_cuda.accelerate`. In float64 the two training curves must
coincide, step by step. Then the profile of each network's gates is drawn: the mean gate of every
channel by class.

    python examples/train_digits.py [--epochs 10] [--images 1297] [--backend auto] [--output DIR]

It needs timm, scikit-learn and matplotlib, and takes a minute on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import models
from chattn_cuda.cli.terminal import Cell, Steps, Table, Terminal, UsageError, require

BATCH = 64
# Rounding differs from step to step; over a training it stays far below this in float64, and a
# wrong gradient shows within a few steps.
COINCIDE = 1e-6


@dataclass
class Split:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,)."""

    images: Tensor
    labels: Tensor


@dataclass
class Curve:
    """Loss of every training step, accuracy on the test images at the end, seconds."""

    losses: list[float]
    accuracy: float
    seconds: float


def digits(count: int | None = None) -> tuple[Split, Split]:
    """All (or the first ``count``) training images, and test images with as much of every digit."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train, test = train_test_split(
        range(len(data.target)), test_size=500, random_state=0, stratify=data.target
    )
    train = train[:count]
    images = torch.tensor(data.images, dtype=torch.double)[:, None] / 16
    labels = torch.tensor(data.target)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def residual_network(block: type[nn.Module], block_args: dict[str, Any]) -> nn.Module:
    """A ResNet with four stages of a block each, for small images."""
    from timm.models.resnet import ResNet

    model = ResNet(
        block,
        (1, 1, 1, 1),
        num_classes=10,
        in_chans=1,
        channels=(16, 32, 32, 32),
        stem_type="deep",
        stem_width=8,
        block_args=block_args,
        zero_init_last=False,  # the blocks work from the first step on
    )
    # The stem of ImageNet networks would leave 2 x 2 pixels.
    model.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model.double()


def networks() -> dict[str, Callable[[], nn.Module]]:
    """The networks by name."""
    from timm.layers import EcaModule, SEModule
    from timm.models.resnet import BasicBlock
    from timm.models.sknet import SelectiveKernelBasic

    se = {"attn_layer": partial(SEModule, rd_ratio=1 / 4)}
    return {
        "SE-ResNet": partial(residual_network, BasicBlock, se),
        "ECA-ResNet": partial(residual_network, BasicBlock, {"attn_layer": EcaModule}),
        "SKNet": partial(residual_network, SelectiveKernelBasic, {}),
    }


def train(
    model: nn.Module, data: Split, test: Split, epochs: int, say: Callable[[str], None]
) -> Curve:
    """Train with SGD and a falling learning rate; the batches are the same in every call."""
    generator = torch.Generator().manual_seed(0)
    steps = epochs * (len(data.labels) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[float] = []
    began = time.perf_counter()
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(data.labels), generator=generator)
        for batch in order.split(BATCH):
            if len(batch) < BATCH:
                continue
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.images[batch]), data.labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        say(f"epoch {epoch + 1}/{epochs}, loss {losses[-1]:.3f}")
    seconds = time.perf_counter() - began
    model.eval()
    with torch.no_grad():
        right = model(test.images).argmax(1) == test.labels
    return Curve(losses, right.double().mean().item(), seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 where all curves coincide, 1 where one does not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, help="train on so many (default: all 1297)")
    parser.add_argument("--backend", default="auto", help="of the accelerated networks")
    parser.add_argument("--output", type=Path, default=Path("digits"), help="folder of the charts")
    arguments = parser.parse_args(argv)
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    if arguments.images is not None and arguments.images < BATCH:
        parser.error(f"--images must be at least {BATCH}, a batch")
    try:
        require("the example", ("timm", "sklearn", "matplotlib"))
        chattn_cuda.backends.select(arguments.backend, "cpu", torch.float64)
    except (UsageError, ValueError) as error:
        parser.error(str(error))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on so small maps, more cost more than they gain
    try:
        return _compare(arguments)
    finally:
        torch.set_num_threads(threads)


def _compare(arguments: argparse.Namespace) -> int:
    terminal = Terminal()
    data, test = digits(arguments.images)
    table = Table(
        f"Digits, {arguments.epochs} epochs, float64",
        ["", "blocks", "eager", "ours", "loss", "differ by", "curves", "eager s", "ours s"],
    )
    charts, coincide = [], True
    made = networks()
    with terminal.steps(3 * len(made)) as steps:
        for name, make in made.items():
            row, ok, chart = _run(name, make, data, test, arguments, steps)
            table.rows.append(row)
            charts.append(chart)
            coincide = coincide and ok
    terminal.table(table)
    terminal.line(
        "eager and ours (accelerated): accuracy on 500 test images; loss: of the last step; "
        "differ by: the largest difference of the losses of all steps",
        "dim",
    )
    for chart in charts:
        terminal.line(f"gate profile: {chart}", wrap=False)
    verdict = "eager and accelerated training curves coincide"
    if coincide:
        terminal.line(verdict, "bold green")
    else:
        terminal.line(f"WRONG: not all {verdict}", "bold red")
    return 0 if coincide else 1


def _run(
    name: str,
    make: Callable[[], nn.Module],
    data: Split,
    test: Split,
    arguments: argparse.Namespace,
    steps: Steps,
) -> tuple[Sequence[str | Cell], bool, Path]:
    torch.manual_seed(0)
    eager = make()
    ours = copy.deepcopy(eager)
    chattn_cuda.accelerate(ours, arguments.backend)
    curves = []
    for kind, model in (("eager", eager), ("accelerated", ours)):
        title = f"{name}, {kind}"
        steps.begin(title)
        say = lambda text, title=title: steps.detail(f"{title}: {text}")  # noqa: E731
        curves.append(train(model, data, test, arguments.epochs, say))
    one, two = curves
    steps.begin(f"{name}: gate profile")
    batches = list(zip(test.images.split(BATCH), test.labels.split(BATCH), strict=True))
    profile = models.gate_profile(ours, batches)
    path = arguments.output / f"{name.lower()}.png"
    chart = profile.plot(path, f"{name} on digits: mean gate of every channel by class")
    difference = max(abs(a - b) for a, b in zip(one.losses, two.losses, strict=True))
    ok = difference <= COINCIDE
    row = [
        name,
        f"{len(profile.blocks)}",  # there are some, or the profile would have raised
        f"{one.accuracy:.1%}",
        f"{two.accuracy:.1%}",
        f"{two.losses[-1]:.4f}",
        f"{difference:.0e}",
        Cell("coincide", "green") if ok else Cell("DIFFER", "bold red"),
        f"{one.seconds:.1f}",
        f"{two.seconds:.1f}",
    ]
    return row, ok, chart


if __name__ == "__main__":
    raise SystemExit(main())
