"""What the plans of all blocks share: layouts, allocation, plans of a pass, launches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chattn_cuda.ops.block import memory_format_of
from chattn_cuda.reference import accumulation_dtype

from . import plan
from .kernels import elements, passes
from .kernels.activations import INTERPRETED
from .plan import PassPlan, plan_pass

# The interpreter runs one program after the other, so it gets few and large ones.
FILL = 8 if INTERPRETED.value else plan.FILL


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
    """Whether the results for ``x`` (N, C, H, W) are channels_last."""
    return memory_format_of(x) == torch.channels_last


def shape_of(x: Tensor, channels_last: bool) -> tuple[int, int, int, bool]:
    """N, C, HW, and whether channels are adjacent: at HW = 1 both formats are the same bytes."""
    n, c, h, w = x.shape
    return n, c, h * w, channels_last or h * w == 1


def memory_format(channels_last: bool) -> torch.memory_format:
    """The one with channels last, or the standard one."""
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_map(x: Tensor, channels_last: bool) -> Tensor:
    """A map like `x`, dense in the format."""
    return torch.empty_like(x, memory_format=memory_format(channels_last))


def sizes(p: PassPlan, n: int) -> tuple[int, ...]:
    """A pass kernel's arguments n_size to splits."""
    return (n, p.mid, p.units, p.steps, p.c_tiles, p.splits)


def constants(p: PassPlan) -> tuple[Any, ...]:
    """A pass kernel's constants ALIGN to TL."""
    return (p.align, p.channels_last, p.tile_n, p.tile_c, p.tile_l)


def fold(
    xs: tuple[Tensor | None, ...],
    channels_last: bool,
    element: Any,
    *,
    merge: Any = elements.sums,
    states: int = 1,
    tiles: int = 1,
    first: bool = False,
    bits: Tensor | None = None,
    numbers: Tensor | None = None,
    planes: Tensor | None = None,
    given: tuple[Any, ...] | None = None,
) -> tuple[Tensor, Launch]:
    """What a fold makes of the maps, in parts (states, splits, N, C), and the launch that does.

    Args:
        xs: The maps; None for one of zeros.
        channels_last: Their format.
        element: One of the folds of `elements`.
        merge: Of its states.
        states: How many numbers it makes of a plane.
        tiles: How many the pass keeps in registers.
        first: Whether the first of the numbers is the first map's value where the plane begins.
        bits: A map of bits that it takes, if any.
        numbers: Rows of C that it takes, if any: (..., C).
        planes: And beside them such (N, C).
        given: Its constants.
    """
    x = xs[0]
    assert x is not None
    n, c, hw, cl = shape_of(x, channels_last)
    least = 1 if bits is None else 8
    if cl or numbers is not None:  # a plane must know which channel it is
        samples = n
        p = plan_pass(n, c, hw, cl, x.element_size(), tiles, fill=FILL, least=least)
    else:
        # Planes of NCHW are independent and adjacent: one sample with N * C channels.
        samples = 1
        p = plan_pass(1, n * c, hw, False, x.element_size(), tiles, fill=FILL, least=least)
    parts = x.new_empty((states, p.splits, n, c), dtype=accumulation_dtype(x.dtype))
    rows = 0 if numbers is None else numbers.numel() // c
    how = (element, merge, given, states, first, rows, *constants(p))
    args = (xs, bits, numbers, planes, parts, *sizes(p, samples), *how)
    return parts, Launch(passes.fold_kernel, p.programs, args)


def squeeze(xs: tuple[Tensor, ...], channels_last: bool, tiles: int = 1) -> tuple[Tensor, Launch]:
    """The sums over maps and HW, in parts (splits, N, C), and the launch that makes them."""
    parts, launch = fold(xs, channels_last, elements.add, tiles=tiles)
    return parts[0], launch


def reduce(
    dy: Tensor, xs: tuple[Tensor, ...], channels_last: bool, tiles: int = 2
) -> tuple[Tensor, Launch]:
    """The sums of dy * x over HW, in parts (M, splits, N, C), and the launch that makes them."""
    element = elements.add_products
    return fold((dy, *xs), channels_last, element, states=len(xs), tiles=tiles)
