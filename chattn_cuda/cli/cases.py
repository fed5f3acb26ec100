"""What is measured: one row per block, map, layout, type and direction.

The blocks are those of `chattn_cuda.peers` and the tails; the checks, benchmarks, tables and charts
follow.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import backends
from chattn_cuda.cli.tails import TAILS
from chattn_cuda.convert import accelerate
from chattn_cuda.peers import PEERS, Measured, Shape

__all__ = [
    "BLOCKS",
    "COMPILE",
    "DIRECTIONS",
    "EAGER",
    "LAYOUTS",
    "Problem",
    "Row",
    "forward_backward",
    "fused_backends",
    "rows",
]

EAGER, COMPILE = "eager", "torch.compile"
FORWARD, TRAINING = "forward", "forward+backward"
DIRECTIONS = (FORWARD, TRAINING)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

_MEASURED = [*(peer for peer in PEERS if isinstance(peer, Measured)), *TAILS]
BLOCKS: dict[str, Measured] = {p.name: p for p in sorted(_MEASURED, key=lambda p: p.relative)}
"""By their short names; the relatives last."""

_NEAR = 8  # units in the last place of the largest value, within which rounding decides


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: everything but the implementation."""

    block: str
    shape: Shape
    layout: str = "nchw"
    direction: str = FORWARD
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def dtype_name(self) -> str:
        """The type without "torch."."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def id(self) -> str:
        """A short unique name."""
        size = "x".join(map(str, self.shape))
        return f"{self.block}-{size}-{self.dtype_name}-{self.layout}-{self.direction}"


def rows(
    block: str,
    device: str,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    layouts: Sequence[str] = tuple(LAYOUTS),
    directions: Sequence[str] = DIRECTIONS,
) -> list[Row]:
    """The rows of a block, those of one group of four maps next to each other."""
    groups = itertools.product(dtypes, layouts, directions, BLOCKS[block].shapes)
    return [Row(block, shape, layout, way, dtype, device) for dtype, layout, way, shape in groups]


def fused_backends(device: str) -> tuple[str, ...]:
    """The backends with kernels that can run on ``device``, in the order of "auto"."""
    return tuple(
        name
        for name in backends.names()
        if device in (backends.get(name).auto_on or ()) and backends.why_not(name, device) is None
    )


class Problem:
    """The tensors and modules of a row: every implementation gets the same.

    The gradients are taken by ``torch.autograd.grad``: no implementation accumulates into ``.grad``
    or finds memory of the round before, and each returns what the layer before it would be handed.
    dy is zero where an activation's derivative jumps and rounding decides to which side.

    Attributes:
        row: The row.
        names: Names of what a call returns, in order.
    """

    def __init__(self, row: Row, copies: int = 1, seed: int = 0) -> None:
        self.row = row
        generator = torch.Generator(row.device).manual_seed(seed)
        memory_format = LAYOUTS[row.layout]

        def tensor(channels: int = row.shape[1]) -> Tensor:
            shape = (row.shape[0], channels, *row.shape[2:])
            values = torch.randn(shape, generator=generator, device=row.device).to(row.dtype)
            return values.contiguous(memory_format=memory_format)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._peer = BLOCKS[row.block].make(row.shape[1]).to(row.device, row.dtype)
        self._training = row.direction == TRAINING
        self._peer.train(self._training)
        maps, of_one = BLOCKS[row.block].maps, row.shape[1] // BLOCKS[row.block].slices
        self._sets = [
            (tuple(tensor().requires_grad_(self._training) for _ in range(maps)), tensor(of_one))
            for _ in range(copies)
        ]
        if self._training and BLOCKS[row.block].edge:
            for maps_, dy in self._sets:
                self._clear_edge(maps_, dy)
        parameters = [f"d {name}" for name, _ in self._peer.named_parameters()]
        of_maps = ["d x"] if maps == 1 else [f"d x{m}" for m in range(maps)]
        self.names = ("y", *of_maps, *parameters) if self._training else ("y",)

    def module(self, implementation: str) -> Any:
        """The row's module by "eager", "torch.compile" or one of the backends."""
        module = copy.deepcopy(self._peer)
        if implementation == EAGER:
            return module
        if implementation == COMPILE:
            # Kernels are specialised on the shape, as a training loop would get them.
            return torch.compile(module, fullgraph=True, dynamic=False)
        accelerate(module, implementation, BLOCKS[self.row.block].fuse)
        return module

    def call(self, implementation: str) -> Callable[[], tuple[Tensor, ...]]:
        """A function that runs the implementation once, on the next set of inputs."""
        module = self.module(implementation)
        return functools.partial(self._run, module, itertools.cycle(self._sets))

    def _clear_edge(self, maps: Sequence[Tensor], dy: Tensor) -> None:
        smooth = copy.deepcopy(self._peer).double()
        setattr(smooth, BLOCKS[self.row.block].edge, nn.Identity())
        with torch.no_grad():
            z = smooth(*(x.double() for x in maps))
        dy[z.abs() <= _NEAR * torch.finfo(dy.dtype).eps * z.abs().max()] = 0.0

    def exact(self) -> tuple[Tensor, ...]:
        """What the peer computes from the first inputs in float64."""
        maps, dy = self._sets[0]
        doubled = tuple(x.detach().double().requires_grad_(self._training) for x in maps)
        return self._run(
            copy.deepcopy(self._peer).double(), itertools.cycle([(doubled, dy.double())])
        )

    def _run(
        self, module: Any, sets: Iterator[tuple[tuple[Tensor, ...], Tensor]]
    ) -> tuple[Tensor, ...]:
        maps, dy = next(sets)
        if self._training:
            return forward_backward(module, maps, dy)
        with torch.no_grad():
            return (module(*maps),)


def forward_backward(module: Any, maps: Sequence[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    """The output and the gradients of the maps and of all parameters."""
    y = module(*maps)
    return (y, *torch.autograd.grad(y, [*maps, *module.parameters()], dy))
