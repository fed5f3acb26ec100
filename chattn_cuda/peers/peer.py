"""What is known of a class of another library that a block stands for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from chattn_cuda.modules.fused import FusedForward

__all__ = ["Measured", "Peer", "Shape"]

Shape = tuple[int, int, int, int]
# The four stages of a ResNet-50 on 224 x 224 images, batch 8.
_STAGES: tuple[Shape, ...] = (
    (8, 256, 56, 56),
    (8, 512, 28, 28),
    (8, 1024, 14, 14),
    (8, 2048, 7, 7),
)


@dataclass(frozen=True)
class Peer:
    """A class of another library.

    Attributes:
        path: Its qualified name.
        mixin: The forward to put in front; it reads the class's own submodules. What it does not
            cover runs the class's own forward.
        obstacle: ``obstacle(module)`` returns why this instance would never take the fused path;
            what can go away by itself (hooks, batch statistics) is seen when it runs. It raises
            AttributeError where the module lacks something.
        parts: Names of other classes whose forwards the mixin stands for, where they are in use.
        models: Models of the library with such modules; no other peer names them.
    """

    path: str
    mixin: type[FusedForward]
    obstacle: Callable[[Any], str | None]
    parts: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    @property
    def library(self) -> str:
        """The package to import."""
        return self.path.partition(".")[0]

    def load(self) -> Any:
        """The class."""
        module, _, name = self.path.rpartition(".")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Measured(Peer):
    """A peer that its block is measured against.

    Attributes:
        name: Short name of the block, as in row ids.
        title: Full name.
        build: ``build(cls, channels)`` makes the module to measure, or one with it inside.
        shapes: Maps (N, C, H, W) to measure.
        maps: How many of them a call takes.
        slices: How many branches a map holds; the output has the channels of one.
        relative: Whether it is another block with other arguments: not in `make bench`.
        fuse: For `chattn_cuda.accelerate`.
        compiled: Whether `make bench` measures torch.compile, too, which takes long.
        edge: Name of the last activation, where its derivative jumps.
    """

    name: str
    title: str
    build: Callable[[Any, int], nn.Module] = lambda cls, channels: cls(channels)
    shapes: tuple[Shape, ...] = _STAGES
    maps: int = 1
    slices: int = 1
    relative: bool = False
    fuse: str = "block"
    compiled: bool = True
    edge: str = ""

    def make(self, channels: int) -> nn.Module:
        """The module for maps of so many channels; `chattn_cuda.accelerate` knows it."""
        return self.build(self.load(), channels)
