"""What a block's CUDA kernels move: one forward and one backward call, executed and counted.

    call = measure("se", (8, 256, 56, 56), torch.bfloat16, "nchw")["forward"]
    call.passes                             # 3.0: the map is read twice and written once
    call.report.buffers["w1"].load_bytes

Bytes and sectors are those that warps ask for. Caches are not modelled: a gate's weights, which
every block reads again, come from the second-level cache on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from tests.cases.calls import Make
from tests.cuda_host import operators
from tests.cuda_host.blocks import KERNELS
from tests.cuda_host.control import BufferTraffic, Report
from tests.cuda_host.kernels import Floors

Shape = tuple[int, int, int, int]

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
#: feature maps that somebody has to move; everything else is small
MAPS = (
    "x",
    "y",
    "dy",
    "dx",
    "residual",
    "dresidual",
    *(f"{name}{m}" for name in ("x", "dx") for m in range(4)),
)
SECTOR = 32


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


def measure(
    block: str,
    shape: Shape,
    dtype: torch.dtype,
    layout: str = "nchw",
    *,
    sm: int = 90,
    **options: Any,
) -> dict[str, Call]:
    """Run a block forward and backward, and count: what does not depend on the numbers.

    Args:
        block: A name in KERNELS.
        shape: (N, C, H, W).
        dtype: Of the map and the weights.
        layout: A name in LAYOUTS.
        sm: Device profile, 90 for compute capability 9.0.
        **options: The block's own, as its case file says.

    Returns:
        A call per direction.
    """
    host, kernels = operators.load(), KERNELS[block]
    map_bytes = math.prod(shape) * dtype.itemsize
    make = Make(dtype, LAYOUTS[layout], new=torch.ones)
    counted = {}
    for direction, calls in kernels.calls(make, shape, **options)._asdict().items():
        host.reset()
        with host.options(counters=True, sm=sm):
            for name, args in calls:
                getattr(torch.ops.chattn_cuda_host, name)(*args)
        floors = kernels.floors(**options)[direction]
        counted[direction] = Call(floors, shape, map_bytes, host.report())
    return counted
