"""What is measured: one row per block, map, layout, type and direction.

A new block is one entry in `BLOCKS`; the checks, benchmarks, tables and charts follow.
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
from chattn_cuda.convert import accelerate

__all__ = [
    "BLOCKS",
    "COMPILE",
    "DIRECTIONS",
    "EAGER",
    "LAYOUTS",
    "Block",
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

Shape = tuple[int, int, int, int]
# The four stages of a ResNet-50 on 224 x 224 images, batch 8.
STAGES: tuple[Shape, ...] = (
    (8, 256, 56, 56),
    (8, 512, 28, 28),
    (8, 1024, 14, 14),
    (8, 2048, 7, 7),
)


@dataclass(frozen=True)
class Block:
    """A block, and the module of another library that it is compared with.

    Attributes:
        name: Short name, as in row ids.
        title: Full name.
        peer: What the peer is called in tables.
        requires: Modules that must be importable.
        make: ``make(channels)`` builds the peer, which `chattn_cuda.accelerate` knows.
        shapes: Maps (N, C, H, W) to measure.
        maps: How many of them a call takes.
        slices: How many branches a map holds; the output has the channels of one.
    """

    name: str
    title: str
    peer: str
    requires: tuple[str, ...]
    make: Callable[[int], nn.Module]
    shapes: tuple[Shape, ...] = STAGES
    maps: int = 1
    slices: int = 1


def _timm_se(channels: int) -> nn.Module:
    from timm.layers import SEModule

    return SEModule(channels)


def _timm_eca(channels: int) -> nn.Module:
    from timm.layers import EcaModule

    return EcaModule(channels)


def _timm_ese(channels: int) -> nn.Module:
    from timm.layers import EffectiveSEModule

    return EffectiveSEModule(channels)


def _timm_split_attn(channels: int) -> nn.Module:
    """What follows the convolution; its map has the channels of both branches."""
    from timm.layers import SplitAttn

    module = SplitAttn(channels // 2, groups=2, norm_layer=nn.BatchNorm2d)
    module.add_module("conv", nn.Identity())
    return module


class _Branches(nn.Module):
    """timm's attention of two branches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        from timm.layers.selective_kernel import SelectiveKernelAttn

        self.attn = SelectiveKernelAttn(channels, 2, max(channels // 16, 32))

    def forward(self, *branches: Tensor) -> Tensor:
        weigh: Any = getattr(self.attn, "weigh", None)  # once it is accelerated
        if weigh is not None:
            return weigh(branches)
        u = torch.stack(branches, 1)
        return (u * self.attn(u)).sum(1)


BLOCKS: dict[str, Block] = {
    b.name: b
    for b in (
        Block("se", "Squeeze-and-Excitation", "timm SEModule", ("timm",), _timm_se),
        Block("eca", "Efficient Channel Attention", "timm EcaModule", ("timm",), _timm_eca),
        Block(
            "sk",
            "Selective Kernel, two branches",
            "timm SelectiveKernelAttn",
            ("timm",),
            _Branches,
            tuple((8, c, h, h) for c, h in ((128, 56), (256, 28), (512, 14), (1024, 7))),
            maps=2,
        ),
        Block(
            "ese",
            "Effective Squeeze-and-Excitation",
            "timm EffectiveSEModule",
            ("timm",),
            _timm_ese,
        ),
        Block(
            "split_attn",
            "Split attention",
            "timm SplitAttn",
            ("timm",),
            _timm_split_attn,
            tuple((8, c, h, h) for c, h in ((128, 56), (256, 28), (512, 14), (1024, 7))),
            slices=2,
        ),
    )
}


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
        accelerate(module, implementation)
        return module

    def call(self, implementation: str) -> Callable[[], tuple[Tensor, ...]]:
        """A function that runs the implementation once, on the next set of inputs."""
        module = self.module(implementation)
        return functools.partial(self._run, module, itertools.cycle(self._sets))

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
