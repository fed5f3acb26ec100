"""Small calls, forward and backward, for direct.py: what those of all blocks have in common.

A block's own are in its case file, and reach every path through its launchers together;
test_cuda_host_mutations.py checks that they do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

Shape = tuple[int, ...]

IDENTITY, SILU, SIGMOID = 0, 4, 10
KINDS = ("tiles", "planes", "rows")


@dataclass(frozen=True)
class Problem:
    """One size of a block, in float32.

    Attributes:
        name: Of the test.
        channels_last: The maps' layout.
        sm: Device profile.
    """

    name: str
    n: int
    c: int
    h: int
    w: int
    channels_last: bool = field(default=False, kw_only=True)
    sm: int = field(default=90, kw_only=True)

    block: ClassVar[str]

    @property
    def map_shape(self) -> Shape:
        return (self.n, self.c, self.h, self.w)

    @property
    def map_bytes(self) -> int:
        return 4 * self.n * self.c * self.h * self.w

    @property
    def inputs(self) -> dict[str, Shape]:
        """The arrays that a call is given."""
        raise NotImplementedError

    @property
    def outputs(self) -> dict[str, Shape]:
        """The arrays that it fills."""
        raise NotImplementedError

    @property
    def options(self) -> dict[str, Any]:
        """What is neither shape nor array, by the names that csrc/blocks/<block>/params.h reads."""
        raise NotImplementedError

    @property
    def operators(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those of a forward call, and those of a backward call."""
        return (f"{self.block}_forward",), (f"{self.block}_backward",)

    #: inputs that have no gradient
    frozen: ClassVar[tuple[str, ...]] = ()

    #: far from 0, around which the values of x lie
    offset: float = field(default=0.0, kw_only=True)

    def is_zero(self, name: str) -> bool:
        """Whether an output is zero whatever the inputs are."""
        return False

    @property
    def shapes(self) -> dict[str, Shape]:
        """All arrays, inputs first."""
        return {**self.inputs, **self.outputs}


def map_bytes(arrays: dict[str, Shape]) -> dict[str, int]:
    """The size of each of the arrays that is a map."""
    return {k: 4 * math.prod(shape) for k, shape in arrays.items() if len(shape) == 4}
