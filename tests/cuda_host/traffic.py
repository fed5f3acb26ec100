"""What a block's CUDA kernels move: one forward and one backward call, executed and counted.

    call = measure("se", (8, 256, 56, 56), torch.bfloat16, "nchw")["forward"]
    call.passes                             # 3.0: the map is read twice and written once
    call.report.buffers["w1"].load_bytes

Bytes and sectors are those that warps ask for. Caches are not modelled: a gate's weights, which
every block reads again, come from the second-level cache on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda.modules.efficient_channel_attention import adaptive_kernel_size
from tests.cuda_host import operators
from tests.cuda_host.control import BufferTraffic, Report

Shape = tuple[int, int, int, int]

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
#: feature maps that somebody has to move; everything else is small
MAPS = ("x", "y", "dy", "dx", *(f"{name}{m}" for name in ("x", "dx") for m in range(4)))
SECTOR = 32


@dataclass(frozen=True)
class Floor:
    """Passes over the map, reads and writes."""

    reads: int
    writes: int

    @property
    def passes(self) -> int:
        return self.reads + self.writes

    def __str__(self) -> str:
        return f"{self.reads}R+{self.writes}W"


@dataclass(frozen=True)
class Floors:
    """What a direction costs in eager PyTorch, with two passes, and with every input read once."""

    eager: Floor
    two_pass: Floor
    single_read: Floor


@dataclass(frozen=True)
class Call:
    """One counted call.

    Attributes:
        floors: For comparison.
        shape: (N, C, H, W).
        map_bytes: Size of one feature map.
        report: The counters.
    """

    floors: Floors
    shape: Shape
    map_bytes: int
    report: Report

    @property
    def maps(self) -> dict[str, BufferTraffic]:
        """The feature maps."""
        return {k: v for k, v in self.report.buffers.items() if k in MAPS}

    @property
    def small(self) -> dict[str, BufferTraffic]:
        """Weights, their gradients, and (N, C)-sized intermediates."""
        return {k: v for k, v in self.report.buffers.items() if k not in MAPS}

    @property
    def passes(self) -> float:
        """Bytes of feature maps, in maps."""
        return total(self.maps).bytes / self.map_bytes

    @property
    def small_share(self) -> float:
        """Bytes of weights and intermediates over bytes of feature maps."""
        return total(self.small).bytes / total(self.maps).bytes


def total(buffers: dict[str, BufferTraffic]) -> BufferTraffic:
    """The sum over buffers."""
    return sum(buffers.values(), BufferTraffic())


def _measure_se(
    x: Tensor,
    dy: Tensor,
    count: Callable[[Callable[[], object]], Report],
    rd: int | None = None,
) -> dict[str, Report]:
    ops = torch.ops.chattn_cuda_host
    c = x.shape[1]
    rd = reduced(c) if rd is None else rd
    w1 = b1 = None
    if rd:
        w1, b1 = torch.randn(rd, c).to(x.dtype), torch.randn(rd).to(x.dtype)
    w2, b2 = torch.randn(c, rd or c).to(x.dtype), torch.randn(c).to(x.dtype)
    gate = (1 if rd else 0, 0.0, 10)  # ReLU (or nothing), its parameter, sigmoid
    saved: list[Tensor] = []

    def forward() -> None:
        saved.extend(ops.se_forward(x, w1, b1, w2, b2, *gate)[1:])

    def backward() -> None:
        ops.se_backward(dy, None, x, *saved, w1, w2, *gate, True, True)

    return {"forward": count(forward), "backward": count(backward)}


def _measure_eca(
    x: Tensor,
    dy: Tensor,
    count: Callable[[Callable[[], object]], Report],
    k: int | None = None,
    circular: bool = False,
    per_channel: bool = False,
) -> dict[str, Report]:
    ops = torch.ops.chattn_cuda_host
    c = x.shape[1]
    weight = torch.randn(c if per_channel else 1, 1, k or adaptive_kernel_size(c)).to(x.dtype)
    saved: list[Tensor] = []

    def forward() -> None:
        saved.extend(ops.eca_forward(x, weight, 10, circular)[1:])

    def backward() -> None:
        ops.eca_backward(dy, None, x, *saved, weight, 10, circular, True, True)

    return {"forward": count(forward), "backward": count(backward)}


def _measure_sk(
    x: Tensor,
    dy: Tensor,
    count: Callable[[Callable[[], object]], Report],
    m: int = 2,
    prologue: bool = False,
) -> dict[str, Report]:
    ops = torch.ops.chattn_cuda_host
    branches = [x, *(x.clone() for _ in range(m - 1))]
    n, c = x.shape[:2]
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    logits = torch.randn(n, m, c, dtype=acc)
    affine = torch.randn(2, m, c, dtype=acc) if prologue else None

    def forward() -> None:
        ops.sk_squeeze(branches, affine)
        ops.sk_select(branches, logits, affine)

    def backward() -> None:
        ops.sk_dot(dy, logits, branches)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        ops.sk_gradient(dy, logits, logits[:, 0], channels_last and not x.is_contiguous(), False)

    return {"forward": count(forward), "backward": count(backward)}


def _measure_sk_block(
    x: Tensor,
    dy: Tensor,
    count: Callable[[Callable[[], object]], Report],
    m: int = 2,
    d: int = 32,
    norm: str = "batch",
    prologue: bool = False,
) -> dict[str, Report]:
    ops = torch.ops.chattn_cuda_host
    branches = [x, *(x.clone() for _ in range(m - 1))]
    c = x.shape[1]

    def random(*shape: int) -> Tensor:
        return torch.rand(shape).to(x.dtype)

    w1, b1, w2, b2 = random(d, c), random(d), random(m * c, d), random(m * c)
    weight, bias = (random(d), random(d)) if norm != "none" else (None, None)
    statistics = (random(d), random(d)) if norm == "fixed" else (None, None)
    of_branches = [random(m * c) for _ in range(4)] if prologue else []
    saved: list[Tensor] = []

    def forward() -> None:
        saved.extend(
            ops.sk_forward(
                branches, w1, b1, weight, bias, w2, b2, *statistics, [], norm == "batch",
                0.1, 1e-5, True, of_branches, 1e-5,
            )[1:]
        )  # fmt: skip

    def backward() -> None:
        ops.sk_backward(
            dy, None, branches, w1, weight, w2, *statistics, norm == "batch", 1e-5, True, *saved,
            False, 0b1111111 if norm != "none" else 0b1110011,
        )  # fmt: skip

    return {"forward": count(forward), "backward": count(backward)}


def _floors_sk_block(m: int = 2, prologue: bool = False, **_: Any) -> dict[str, Floors]:
    return _floors_sk(m, prologue)


def _floors_sk(m: int = 2, prologue: bool = False) -> dict[str, Floors]:
    """Eager, by the operations of timm and their gradients: stack, sum, mean, mul, sum.

    A prologue is a batch norm and a ReLU before them.
    """
    before = 2 * m if prologue else 0
    return {
        "forward": Floors(
            Floor(before + 4 * m + 1, before + 2 * m + 2), Floor(2 * m, 1), Floor(m, 1)
        ),
        "backward": Floors(Floor(3 * m + 2, 3 * m), Floor(m + 2, m), Floor(m + 1, m)),
    }


@dataclass(frozen=True)
class Block:
    """A block: how to run it, and its floors by direction."""

    measure: Callable[..., dict[str, Report]]
    floors: Callable[..., dict[str, Floors]]


def _floors_of_one_map(**options: Any) -> dict[str, Floors]:
    return {
        "forward": Floors(Floor(2, 1), Floor(2, 1), Floor(1, 1)),
        "backward": Floors(Floor(6, 4), Floor(3, 1), Floor(2, 1)),
    }


BLOCKS = {
    "se": Block(_measure_se, _floors_of_one_map),
    "eca": Block(_measure_eca, _floors_of_one_map),
    "sk": Block(_measure_sk, _floors_sk),
    "sk_block": Block(_measure_sk_block, _floors_sk_block),
}


def reduced(channels: int) -> int:
    """Hidden channels of timm's SE module: a sixteenth, rounded to a multiple of 8."""
    rd = max(8, (channels // 16 + 4) // 8 * 8)
    return rd + 8 if rd < 0.9 * channels / 16 else rd


def measure(
    block: str,
    shape: Shape,
    dtype: torch.dtype,
    layout: str = "nchw",
    *,
    sm: int = 90,
    **options: Any,
) -> dict[str, Call]:
    """Run a block forward and backward on random numbers, and count.

    Args:
        block: A name in BLOCKS.
        shape: (N, C, H, W).
        dtype: Of the map and the weights.
        layout: A name in LAYOUTS.
        sm: Device profile, 90 for compute capability 9.0.
        **options: The block's own: SE's rd (by default as in timm; 0 for effective SE, with one
            layer); ECA's k (by default as in timm), circular and per_channel; SK's
            m, the number of branches, and prologue; the whole selective kernel's (sk_block) also d
            and norm: "none", "fixed" or "batch".

    Returns:
        A call per direction.
    """
    host = operators.load()
    # What is counted does not depend on the numbers: one random sample will do for all.
    x, dy = (
        torch.randn(1, *shape[1:]).to(dtype).expand(shape).clone(memory_format=LAYOUTS[layout])
        for _ in range(2)
    )

    def count(call: Callable[[], object]) -> Report:
        host.reset()
        with host.options(counters=True, sm=sm):
            call()
        return host.report()

    reports = BLOCKS[block].measure(x, dy, count, **options)
    map_bytes = x.numel() * x.element_size()
    floors = BLOCKS[block].floors(**options)
    return {k: Call(floors[k], shape, map_bytes, r) for k, r in reports.items()}
