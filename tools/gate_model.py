"""What a product of the gates should take on an H100, and why.

    python tools/gate_model.py

    time = launch + waits * wait + instructions * issue + multiplications * fast + bytes / bandwidth

`waits`: memory round trips that depend on each other, on the longest path through the launch (a
fence and an atomic count as waits). `instructions`: of one warp on that path, counted in the SASS
for sm_90, without the loop that multiplies, whose instructions do not wait for each other. The
constants are fitted to `MEASURED`, kernel times of an H100 at commit 6536ee2 (torch 2.11, cold
caches), where the product was another kernel, `contract`; the table's first part shows how well.
What the second part says of today's kernel, `product`, is predicted. docs/gpu-model.md explains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

LAUNCH = 2.0  # us: the shortest kernel that anybody saw there, less its one wait
WAIT = 0.37  # us: the difference of 62 waits, between 32 partial sums per plane and 1
ISSUE = 0.0052  # us: an instruction of a warp, two warps per scheduler, code that runs once
FAST = 0.0011  # us: the same where nothing waits: a turn of two warps
BANDWIDTH = 2.4e6  # bytes per us

# (N, C, rd, partial sums per plane) and microseconds; channels_last, bfloat16.
MEASURED = [
    ((128, 256, 16, 5), 23.0), ((128, 512, 32, 3), 21.0), ((128, 1024, 64, 2), 46.0),
    ((128, 2048, 128, 1), 53.0), ((128, 2048, 8, 1), 21.0), ((128, 2048, 32, 1), 21.0),
    ((128, 2048, 64, 1), 48.0), ((128, 2048, 256, 1), 69.0), ((8, 256, 16, 32), 39.0),
    ((8, 256, 16, 1), 15.8), ((8, 512, 32, 24), 33.0), ((8, 1024, 64, 6), 18.0),
    ((8, 2048, 128, 1), 15.0),
]  # fmt: skip


@dataclass(frozen=True)
class Path:
    """The longest path through a launch.

    Attributes:
        blocks: Of the launch.
        waits: Round trips to memory, one after another.
        instructions: Of a warp, without the multiplying loop.
        fast: Instructions of that loop.
        bytes: Moved by all blocks.
    """

    blocks: int
    waits: float
    instructions: int
    fast: int
    bytes: int

    @property
    def time(self) -> float:
        """Microseconds."""
        own = LAUNCH + self.waits * WAIT + self.instructions * ISSUE + self.fast * FAST
        return own + self.bytes / BANDWIDTH


def contract(n: int, c: int, rd: int, parts: int) -> Path:
    """The kernel of commit 6536ee2."""
    samples = math.ceil(n / 32)
    wide = rd > 32 and samples > 2
    width = 128 if wide else 32
    tiles = samples * math.ceil(rd / width)
    splits = max(1, min(64 // tiles, c // 128, 16))
    chunks = math.ceil(c / splits / (32 if wide else 64))
    # A chunk: each part of the sums, then the weights, all before it is multiplied.
    waits = chunks * (parts + 1)
    outputs = 16 if wide else 4
    if splits > 1:  # fence, atomic, fence; two parts at a time
        waits += 3 + math.ceil(splits / 2)
    rows = min(n, 32) / 32  # what a missing sample skips
    fetch = (4 if wide else 8) * (30 + 70 * rows) + 350
    add = 350 if wide else 20 + 40 * rows  # two parts of a thread's outputs
    last = add * math.ceil(splits / 2) + 25 * outputs * rows + 300
    multiply = 592 if wide else 300
    moved = 4 * n * c * parts * math.ceil(rd / width) + 2 * c * rd * samples + 8 * splits * n * rd
    return Path(tiles * splits, waits, int(chunks * fetch + last), chunks * multiply, moved)


def product(n: int, c: int, rd: int, parts: int, clusters: bool = True) -> Path:
    """Today's kernel, forward, with 16-bit weights; see plan_product."""
    tile = 8 if n <= 16 else 16
    tiles = math.ceil(n / tile) * math.ceil(rd / 64)
    splits = 1
    while splits < 8 and tiles * splits * 2 <= 128 and splits * 4 * 16 <= c:
        splits *= 2
    depth = math.ceil(math.ceil(c / 16) / splits) * 16  # summands of a block
    steps = math.ceil(depth / 128)
    words = tile * 2 ** math.ceil(math.log2(min(depth, 128) / 4))
    groups = max(1, 256 // words)  # threads that share out the parts of a sum
    batches = math.ceil(max(0, math.ceil(parts / groups) - 1) / (64 // tile))
    # The next step's numbers are asked for before this one's are multiplied.
    waits = 1 + max(0, batches - 1) + (steps - 1) * 0.5
    instructions = 270 + steps * (135 + 125) + batches * 164 + (steps + 1) * 25 + 80
    if splits > 1:
        waits += 1.5 if clusters else 4
        instructions += 120 if clusters else 700
    quads = math.ceil(min(depth, 128) / 16)  # of a group of threads, in a step
    fast = steps * quads * (76 if tile == 16 else 44)
    moved = 4 * n * c * parts * math.ceil(rd / 64) + 2 * c * rd * math.ceil(n / tile)
    return Path(tiles * splits, waits, instructions, fast, moved)


def lines() -> Iterator[str]:
    """Both tables."""
    yield "contract, commit 6536ee2"
    yield f"{'N':>4} {'C':>5} {'rd':>4} {'parts':>5}  {'blocks':>6} {'waits':>5} {'instr.':>6} " \
          f"{'model':>6} {'measured':>8} {'error':>6}"  # fmt: skip
    for shape, measured in MEASURED:
        path = contract(*shape)
        n, c, rd, parts = shape
        yield f"{n:4} {c:5} {rd:4} {parts:5}  {path.blocks:6} {path.waits:5} " \
              f"{path.instructions + path.fast:6} {path.time:6.1f} {measured:8.1f} " \
              f"{path.time / measured - 1:+6.0%}"  # fmt: skip
    yield ""
    yield "product, predicted (us with clusters, and without)"
    for shape, measured in MEASURED:
        path, other = product(*shape), product(*shape, clusters=False)
        n, c, rd, parts = shape
        yield f"{n:4} {c:5} {rd:4} {parts:5}  {path.blocks:6} {path.waits:5} " \
              f"{path.instructions + path.fast:6} {path.time:6.1f} {other.time:6.1f}   " \
              f"{measured / path.time:4.1f}x faster than contract was"  # fmt: skip


if __name__ == "__main__":
    print("\n".join(lines()))
