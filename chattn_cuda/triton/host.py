"""What the plans of all blocks share: layouts, allocation, plans of a pass, launches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import launch
from .kernels.activations import INTERPRETED
from .launch import PassPlan, plan_pass

# The interpreter runs one program after the other, so it gets few and large ones.
FILL = 8 if INTERPRETED.value else launch.FILL


class Launch(NamedTuple):
    """One kernel launch: ``args`` in the order of the kernel's parameters, constants included."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]

    def tensors(self) -> Iterator[Tensor]:
        """The tensors among the arguments, those in tuples too."""
        for a in self.args:
            yield from (t for t in (a if isinstance(a, tuple) else (a,)) if isinstance(t, Tensor))


def is_channels_last(x: Tensor) -> bool:
    """Whether the results for ``x`` (N, C, H, W) are channels_last; the rule of all backends.

    A dense map keeps its format (contiguous where it is both). Of the others, those whose channels
    are adjacent and whose pixels are at least C apart count as channels_last.
    """
    if x.is_contiguous():
        return False
    if x.is_contiguous(memory_format=torch.channels_last):
        return True
    _, c, h, w = x.shape
    _, sc, sh, sw = x.stride()
    return c > 1 and sc == 1 and h * w > 1 and (h == 1 or sh >= c) and (w == 1 or sw >= c)


def memory_format(channels_last: bool) -> torch.memory_format:
    """The one with channels last, or the standard one."""
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_map(x: Tensor, channels_last: bool) -> Tensor:
    """A map like `x`, dense in the format."""
    return torch.empty_like(x, memory_format=memory_format(channels_last))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and gates."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sizes(p: PassPlan, n: int) -> tuple[int, ...]:
    """A pass kernel's arguments n_size to splits."""
    return (n, p.mid, p.units, p.steps, p.c_tiles, p.splits)


def tiles(p: PassPlan) -> tuple[Any, ...]:
    """A pass kernel's constants ALIGN to TL."""
    return (p.align, p.channels_last, p.tile_n, p.tile_c, p.tile_l)


def reduction(
    n: int, c: int, hw: int, cl: bool, itemsize: int, tiles: int, by_channel: bool = False
) -> tuple[int, PassPlan]:
    """Plan of a pass that sums over HW, and the number of samples to run it with.

    by_channel: the pass must know which channel a plane is.
    """
    if cl or by_channel:
        return n, plan_pass(n, c, hw, cl, itemsize, tiles, fill=FILL)
    # Planes of NCHW are independent and adjacent: one sample with N * C channels.
    return 1, plan_pass(1, n * c, hw, False, itemsize, tiles, fill=FILL)
