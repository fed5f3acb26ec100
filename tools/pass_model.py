"""What a reduction over a map, and a tail, should take on an H100, and why.

    python tools/pass_model.py           reductions: modelled, measured, and today's, predicted
    python tools/pass_model.py --tails   tails of 128x256x56x56, predicted

    time  = launch + (waits^1.5 + bytes^1.5)^(2/3)
    waits = waves * (round trips * trip + edge),  bytes = bytes / bandwidth

`waves`: how often the multiprocessors are filled with blocks, a part of a wave being a whole one.
`round trips`: of a thread, one after another: its places in the map over those it asks for at
once. `edge`: what a block does before and after its loop. The exponent says that waiting and moving
overlap, though not wholly. The constants are fitted to `MEASURED`, kernel times of an H100 at
commit 6536ee2 (bfloat16, cold caches), where each thread had one place in flight; plans and
registers are those of that commit. What the last column says of today's is predicted. Passes that
write are not modelled: a tail's take their bytes at a copy's speed. docs/gpu-model.md explains.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import gate_model

LAUNCH = 1.9  # us
TRIP = 0.55  # us: a round trip to memory while the memory is busy
EDGE = {"rows": 1.2, "planes": 0.8, "tiles": 1.6}  # us; tiles sum in a second phase
BANDWIDTH = 3.02e6  # bytes per us
OVERLAP = 1.5

MULTIPROCESSORS = 132
THREADS = 256
WORD = 8  # bfloat16 elements of 16 bytes
MANY_BLOCKS = 528

SUM, DOT = 1, 2  # maps that are read
# (C, H) -> us at a batch of 128, and of 8.
MEASURED = {
    (SUM, "channels_last"): {
        (256, 56): (85, 11), (512, 28): (48, 7), (1024, 14): (31, 6), (2048, 7): (18, 6),
    },
    (SUM, "nchw"): {
        (256, 56): (82, 9), (512, 28): (47, 6), (1024, 14): (33, 5), (2048, 7): (18, 4),
    },
    (DOT, "channels_last"): {
        (256, 56): (147, 17), (512, 28): (88, 9), (1024, 14): (47, 7), (2048, 7): (28, 7),
    },
    (DOT, "nchw"): {
        (256, 56): (148, 15), (512, 28): (81, 9), (1024, 14): (49, 6), (2048, 7): (28, 5),
    },
}  # fmt: skip
# Blocks on a multiprocessor (tests/cuda_resources.csv, sm_90), then and today.
RESIDENT = {
    ("rows", SUM): (6, 6), ("rows", DOT): (5, 5), ("planes", SUM): (8, 6), ("planes", DOT): (8, 6),
    ("tiles", SUM): (8, 8), ("tiles", DOT): (8, 8),
}  # fmt: skip
# Places that a thread asks for at once (today: kRowsBatch, kBatch, kTilesBatch).
IN_FLIGHT = {
    ("rows", SUM): (1, 4), ("rows", DOT): (1, 2), ("planes", SUM): (1, 4), ("planes", DOT): (1, 2),
    ("tiles", SUM): (1, 2), ("tiles", DOT): (1, 1),
}  # fmt: skip
# The same of tails' reductions today, whose numbers take more registers.
RESIDENT_OF_TAILS = {
    ("rows", SUM): 2, ("rows", DOT): 2, ("planes", SUM): 4, ("planes", DOT): 4,
}  # fmt: skip
SHAPE = 128, 256, 56  # of the tails: N, C, H
HIDDEN = 16  # of its SE block
COPIED = 69.0  # us: half of a copy of that map, measured (docs/gpu.md)
SMALL = 5.0  # us: a launch on numbers per plane or channel: a few waits, some 500 instructions
WEIGHTS = 20.0  # us: the gradients of the gate's weights, measured at commit 6536ee2
MASK = 1 / 16  # of a map in bfloat16


@dataclass(frozen=True)
class Pass:
    """A reduction's launch.

    Attributes:
        kind: rows (channels_last), planes or tiles (NCHW).
        blocks: Of the launch.
        resident: Blocks that a multiprocessor holds.
        trips: Round trips of a thread, one after another.
        bytes: That are read.
    """

    kind: str
    blocks: int
    resident: int
    trips: int
    bytes: int

    @property
    def waits(self) -> float:
        """Microseconds if bytes cost nothing."""
        waves = math.ceil(self.blocks / (MULTIPROCESSORS * self.resident))
        return waves * (self.trips * TRIP + EDGE[self.kind])

    @property
    def time(self) -> float:
        """Microseconds."""
        moved = self.bytes / BANDWIDTH
        return float(LAUNCH + (self.waits**OVERLAP + moved**OVERLAP) ** (1 / OVERLAP))


def _rows(n: int, c: int, hw: int, today: bool) -> tuple[int, int]:
    """(blocks, places of a thread)."""
    vectors, cols = math.ceil(c / WORD), 1
    while cols < min(32, vectors):
        cols *= 2
    if today:
        while n * math.ceil(vectors / cols) * 8 < MANY_BLOCKS and cols * 16 > 128:
            cols //= 2
    blocks, rows = n * math.ceil(vectors / cols), THREADS // cols
    if today:
        splits = min(MANY_BLOCKS // blocks, math.ceil(hw / (4 * rows)))
    else:
        splits = min(math.ceil(MANY_BLOCKS / blocks), hw // (4 * rows))
    splits = max(1, min(splits, 32))
    return blocks * splits, math.ceil(hw / splits / rows)


def _planes(planes: int, hw: int) -> tuple[str, int, int]:
    """(kind, blocks, places of a thread)."""
    ragged = hw % WORD != 0
    if hw < 512 and (ragged or hw < 256):
        tile = max(4096 // hw // WORD * WORD, WORD if ragged else 1)
        return "tiles", math.ceil(planes / tile), math.ceil(tile * hw / WORD / THREADS)
    if planes >= MANY_BLOCKS * 8 or hw < 1024:
        return "planes", math.ceil(planes / 8), math.ceil(hw / WORD / 32)
    splits = max(1, min(math.ceil(MANY_BLOCKS / planes), hw // 4096, 32))
    return "planes", planes * splits, math.ceil(hw / splits / WORD / THREADS)


def reduction(inputs: int, layout: str, n: int, c: int, h: int, today: bool = True) -> Pass:
    """A sum (one input) or dot (two) of bfloat16 maps; see plan_reduce in plan.h.

    Args:
        inputs: SUM or DOT.
        layout: nchw or channels_last.
        n: Samples.
        c: Channels.
        h: Height and width.
        today: The plan of today's kernels, not of commit 6536ee2.
    """
    kind = "rows"
    if layout == "nchw":
        kind, blocks, places = _planes(n * c, h * h)
    else:
        blocks, places = _rows(n, c, h * h, today)
    trips = math.ceil(places / IN_FLIGHT[kind, inputs][today])
    return Pass(kind, blocks, RESIDENT[kind, inputs][today], trips, 2 * inputs * n * c * h * h)


def tail_reduction(inputs: int, layout: str, mask: float = 0.0) -> Pass:
    """A tail's pass that sums: moments of one map, or what the gradients need of two."""
    plan = reduction(inputs, layout, *SHAPE)
    n, c, h = SHAPE
    more = round(2 * mask * n * c * h * h)
    resident = RESIDENT_OF_TAILS[plan.kind, inputs]
    return replace(plan, resident=resident, bytes=plan.bytes + more)


def tail(gate: bool, training: bool, layout: str) -> dict[str, tuple[float, float]]:
    """Launches of a tail with residual and ReLU: what each moves, in maps, and microseconds."""
    n, c, _ = SHAPE
    product = gate_model.product(n, c, HIDDEN, 1).time
    mask = MASK if training else 0.0
    found: dict[str, tuple[float, float]] = {}
    if gate or training:
        found["squeeze"] = 1.0, tail_reduction(SUM, layout).time
    found["statistics"] = 0.0, SMALL
    if gate:  # on (N, C) numbers: the mean as it is, the product, the gate
        found["gate"] = 0.0, SMALL + product + SMALL
    found["apply"] = 3.0 + mask, (3.0 + mask) * COPIED + LAUNCH
    if training:
        found["reduce"] = 2.0 + mask, tail_reduction(DOT, layout, mask).time
        found["sums"] = 0.0, SMALL
        if gate:
            found["gate's gradients"] = 0.0, SMALL + product + WEIGHTS
        found["norm"] = 0.0, SMALL
        found["gradient"] = 4.0 + mask, (4.0 + mask) * COPIED + LAUNCH
    return found


def tail_lines() -> Iterator[str]:
    """The table of tails."""
    n, c, h = SHAPE
    yield f"tails of {n}x{c}x{h}x{h} with residual and ReLU, bfloat16, predicted: us"
    yield f"{'':>5} {'':>9} {'layout':>13}  {'maps':>5} {'at a copy':>9} {'modelled':>8}  launches"
    for gate in (True, False):
        for training in (False, True):
            for layout in ("channels_last", "nchw"):
                found = tail(gate, training, layout)
                maps, us = map(sum, zip(*found.values(), strict=True))
                parts = ", ".join(f"{name} {t:.0f}" for name, (_, t) in found.items())
                name = "SE" if gate else "plain"
                work = "training" if training else "inference"
                yield f"{name:>5} {work:>9} {layout:>13}  " \
                      f"{maps:5.2f} {maps * COPIED:9.0f} {us:8.0f}  {parts}"  # fmt: skip


def lines() -> Iterator[str]:
    """The table."""
    yield "reductions, commit 6536ee2: us, modelled and measured; today: us, predicted"
    yield f"{'reads':>5} {'layout':>13} {'kind':>6} {'N':>3} {'C':>4} {'H':>2}  {'blocks':>6} " \
          f"{'trips':>5} {'waits':>5} {'model':>5} {'measured':>8} {'error':>5}  " \
          f"{'today':>5}"  # fmt: skip
    for (inputs, layout), stages in MEASURED.items():
        for (c, h), times in stages.items():
            for n, measured in zip((128, 8), times, strict=True):
                was = reduction(inputs, layout, n, c, h, today=False)
                now = reduction(inputs, layout, n, c, h)
                yield f"{inputs:5} {layout:>13} {was.kind:>6} {n:3} {c:4} {h:2}  {was.blocks:6} " \
                      f"{was.trips:5} {was.waits:5.1f} {was.time:5.1f} {measured:8} " \
                      f"{was.time / measured - 1:+5.0%}  {now.time:5.1f}"  # fmt: skip


if __name__ == "__main__":
    print("\n".join(tail_lines() if "--tails" in sys.argv[1:] else lines()))
