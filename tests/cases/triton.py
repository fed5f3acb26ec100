"""What a block brings to the checks of its Triton kernels. Nothing here imports Triton."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.cases.calls import Calls

Shape = tuple[int, int, int, int]

# A stage of a ResNet-50 with long rows, the one with short rows and wide weights, odd sizes.
LONG = (8, 256, 56, 56)
SHORT = (256, 2048, 7, 7)
ODD = (3, 17, 19, 19)
SMALL = (8, 64, 8, 8)
HUGE = (1, 2, 40000, 40000)  # more than 2^31 elements


class Compiled(NamedTuple):
    """A call of a block, forward and backward, whose kernels are compiled ahead of time."""

    block: str
    shape: Shape
    dtype: str
    channels_last: bool = False
    options: dict[str, Any] = {}
    weights: str | None = None


@dataclass(frozen=True)
class Triton:
    """A block's Triton kernels.

    Attributes:
        calls: ``calls(make, shape, **options)``: what runs them.
        usual: What users meet, beside the sizes that every block is compiled for.
        rare: What is compiled for one architecture only.
        writes_map: Kernels that read maps and write one.
        small: Kernels without a map.
        ways: By name, what changes a launch: options of `calls`, and of `triton_launches.calls_of`.
        options: ``options(shape)``: the options where a case gives no others.
        operators: The operator that makes a plan, where it has another name than what is called.
        folds_numbers: Whether its folds read numbers beside maps.
    """

    calls: Callable[..., Calls]
    usual: tuple[Compiled, ...]
    rare: tuple[Compiled, ...]
    writes_map: tuple[str, ...]
    small: tuple[str, ...]
    ways: dict[str, dict[str, Any]]
    options: Callable[[Shape], dict[str, Any]] = lambda shape: {}
    operators: dict[str, str] = field(default_factory=dict)
    folds_numbers: bool = False
