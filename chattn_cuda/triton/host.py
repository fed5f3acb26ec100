"""What every block does around its Triton kernels: layouts, allocation, plans of a pass, launch."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import launch
from .kernels.activations import INTERPRETED
from .launch import WARPS, PassPlan, plan_pass

# The interpreter runs one program after the other, so it gets few and large ones.
FILL = 8 if INTERPRETED.value else launch.FILL


class Launch(NamedTuple):
    """One kernel launch: ``args`` in the order of the kernel's parameters, constants included."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]


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


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def dense(x: Tensor, channels_last: bool) -> Tensor:
    """`x`, or a copy of it, dense in the format."""
    return x.contiguous(memory_format=_format(channels_last))


def empty_map(x: Tensor, channels_last: bool) -> Tensor:
    """A map like `x`, dense in the format."""
    return torch.empty_like(x, memory_format=_format(channels_last))


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


def run(launches: list[Launch], x: Tensor) -> None:
    """Launch on x's device and torch's current stream."""
    if not launches:
        return
    context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if INTERPRETED.value:
        import numpy

        context = numpy.errstate(all="ignore")  # Inf and NaN are results here, as on a GPU
    elif x.device.type != "cuda":
        raise RuntimeError(
            f"chattn_cuda's Triton kernels run on CUDA tensors, got a tensor on {x.device}; for "
            "CPU tensors set the environment variable TRITON_INTERPRET=1 before Python starts "
            "(slow, for tests)"
        )
    elif x.device.index != torch.cuda.current_device():
        context = torch.cuda.device(x.device)
    with context:
        for kernel, programs, args in launches:
            kernel[(programs,)](*args, num_warps=WARPS)
