"""Small batches on a CPU: every block against eager PyTorch, hot and cold caches, one line a row.

``python -m bench.matrix`` measures the short form, ``--all`` the shapes of four networks. The two
implementations alternate; a row's figure is the median of the rounds' ratios. Rounds in which a
thread had to wait for a core are left out, and rows below 1 are measured again, longer, before they
are believed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from math import exp, fsum, log, nan
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from chattn_cuda.cli.cases import BLOCKS, DIRECTIONS, EAGER, LAYOUTS, TRAINING, Problem, Row
from chattn_cuda.cli.measure import Waiting, keep_freed_memory

# (C, H = W) in front of the SE blocks of each network, for 224 x 224 images.
NETWORKS: dict[str, tuple[tuple[int, int], ...]] = {
    "seresnet50": ((256, 56), (512, 28), (1024, 14), (2048, 7)),
    "efficientnet_b0": (
        *((32, 112), (96, 56), (144, 56), (144, 28), (240, 28), (240, 14), (480, 14), (672, 14)),
        *((672, 7), (1152, 7)),
    ),
    "mobilenetv3_large_100": ((72, 28), (120, 28), (480, 14), (672, 14), (672, 7), (960, 7)),
    "regnety_032": ((72, 56), (216, 28), (576, 14), (1512, 7)),
}
SHORT = ((256, 56), (144, 56), (240, 14), (2048, 7))


class Conditions(NamedTuple):
    """What a row is measured under, besides the row's own."""

    row: Row
    threads: int
    cold: bool

    def __str__(self) -> str:
        caches = "cold" if self.cold else "hot"
        return f"{self.row.id}-{self.threads}t-{caches}"


class Figure(NamedTuple):
    """Medians over rounds: milliseconds, and the ratio."""

    eager: float
    fused: float
    ratio: float
    rounds: int


@functools.cache
def flush() -> Callable[[], object]:
    """A function that reads more memory than the last cache holds."""
    sizes = [
        p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")
    ]
    units = {"K": 2**10, "M": 2**20}
    largest = max((int(s[:-1]) * units[s[-1]] for s in sizes), default=32 * 2**20)
    return torch.ones(min(4 * largest, 2**29) // 4).sum


def measure(conditions: Conditions, rounds: int) -> Figure:
    """Eager PyTorch and the kernels in turn, until so many rounds were undisturbed."""
    torch.set_num_threads(conditions.threads)
    problem = Problem(conditions.row)
    calls = [problem.call(name) for name in (EAGER, "cpu")]
    kept: list[tuple[float, float]] = []
    for i in range(5 * rounds):
        samples = [sample(call, conditions.cold) for call in calls[:: 1 if i % 2 else -1]]
        eager, fused = samples[:: 1 if i % 2 else -1]
        if eager and fused:
            kept.append((eager, fused))
        if len(kept) == rounds:
            break
    if not kept:
        return Figure(nan, nan, nan, 0)
    ratio = median(e / f for e, f in kept)
    return Figure(median(e for e, _ in kept), median(f for _, f in kept), ratio, len(kept))


def sample(call: Callable[[], object], cold: bool) -> float | None:
    """Milliseconds of a call; None where a thread had to wait for a core."""
    time.sleep(0.001)  # whoever has just slept is not the first to be sent off a core
    call()
    if cold:
        flush()()
    with Waiting() as waiting:
        start = time.perf_counter()
        result = call()
        elapsed = time.perf_counter() - start
    del result
    return elapsed * 1e3 if waiting.share < 0.02 else None


def settle(conditions: Conditions, rounds: int, again: int) -> Figure:
    """Measures; again, and with three times as many rounds, as often as the row is below 1."""
    figure = measure(conditions, rounds)
    for _ in range(again):
        if figure.ratio >= 1:
            break
        figure = measure(conditions, 3 * rounds)
    return figure


@functools.cache
def is_normed(block: str) -> bool:
    """Whether a batch norm is in it: PyTorch refuses to train one with a single sample."""
    return any(isinstance(m, torch.nn.BatchNorm2d) for m in BLOCKS[block].make(64).modules())


def conditions_of(arguments: argparse.Namespace) -> Iterator[Conditions]:
    """The rows that the command line asks for."""
    shapes = dict.fromkeys(itertools.chain(*NETWORKS.values())) if arguments.all else SHORT
    if arguments.shape:
        shapes = [tuple(map(int, s.split("x"))) for s in arguments.shape]
    for block, dtype, layout, way, batch, threads, caches, (c, hw) in itertools.product(
        arguments.block,
        arguments.dtype,
        arguments.layout,
        arguments.direction,
        arguments.batch,
        arguments.threads,
        arguments.caches,
        shapes,
    ):
        if batch == 1 and way == TRAINING and is_normed(block):
            continue
        row = Row(block, (batch, c, hw, hw), layout, way, getattr(torch, dtype))
        yield Conditions(row, threads, caches == "cold")


def main() -> None:
    """Measure and print: a line for each row, and geometric means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="the shapes of all networks")
    parser.add_argument("--shape", action="append", metavar="CxH", help="these maps only")
    several = functools.partial(parser.add_argument, nargs="+")
    several("--block", choices=tuple(BLOCKS), default=["se"])
    several("--dtype", default=["float32"])
    several("--layout", choices=tuple(LAYOUTS), default=list(LAYOUTS))
    several("--direction", choices=DIRECTIONS, default=list(DIRECTIONS))
    several("--batch", type=int, default=[1])
    several("--threads", type=int, default=[torch.get_num_threads()])
    several("--caches", choices=("hot", "cold"), default=["hot", "cold"])
    parser.add_argument("--rounds", type=int, default=21, help="per row (21)")
    parser.add_argument("--again", type=int, default=2, help="times that a row below 1 is repeated")
    arguments = parser.parse_args()
    keep_freed_memory()
    groups: dict[str, list[float]] = {}
    for conditions in conditions_of(arguments):
        figure = settle(conditions, arguments.rounds, arguments.again)
        row = conditions.row
        group = f"{row.block}, batch {row.shape[0]}, {row.layout}, {row.direction}"
        if figure.rounds:
            groups.setdefault(group, []).append(figure.ratio)
        print(
            f"{conditions!s:72} {figure.eager:8.3f} {figure.fused:8.3f} ms {figure.ratio:6.2f}x"
            f"{'' if figure.ratio >= 1 else '  *'}",
            flush=True,
        )
    for group, ratios in groups.items():
        mean = exp(fsum(map(log, ratios)) / len(ratios))
        below = sum(r < 1 for r in ratios)
        print(f"{group:64} {mean:6.2f}x in {len(ratios)} rows, {below} below 1")


if __name__ == "__main__":
    main()
