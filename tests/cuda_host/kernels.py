"""What a block brings to the checks of its CUDA kernels on the host execution layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.cuda_host.mutation import Mutant
from tests.cuda_host.problems import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from tests.cases.calls import Calls

#: by buffer
Bytes = dict[str, int]
#: by operator: direct.Process.plan()
Plans = dict[str, dict[str, int]]


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


def floors_of_one_map(**options: Any) -> dict[str, Floors]:
    """Of a gate that is computed from the map that it scales."""
    return {
        "forward": Floors(Floor(2, 1), Floor(2, 1), Floor(1, 1)),
        "backward": Floors(Floor(6, 4), Floor(3, 1), Floor(2, 1)),
    }


@dataclass(frozen=True)
class Kernels:
    """A block's kernels, or those of one part of it.

    Attributes:
        name: Of the problems' block.
        sources: The file in csrc/ with the kernels, and those with kernels that it launches, too.
        problems: Small calls, which together reach every path through the launchers.
        formula: ``formula(problem, **inputs)``: results of the forward, in the order in which they
            are computed.
        loads: ``loads(problem, plans)``: bytes of maps that forward and backward load.
        ordered: Problems whose launches change places.
        bugs: What the checks must notice.
        calls: ``calls(make, shape, **options)``: the operators that run the kernels.
        floors: ``floors(**options)``: for comparison, by direction.
        largest: Sizes and options for which every kernel is called with as much shared memory as
            any.
        independent: Neighbouring launches of which neither needs the other.
        many_blocks: Problems that take long under ThreadSanitizer.
        gate: A gate of the apply pass that only this source has.
        reads: By a regular expression for kernels' names, how many maps each of them reads at a
            place, beside the number that is in the name.
        serial: Passes in float64 whose sums the compiler makes word by word, as loads come.
    """

    name: str
    sources: tuple[str, ...]
    problems: tuple[Problem, ...]
    formula: Callable[..., dict[str, Tensor]]
    loads: Callable[..., tuple[Bytes, Bytes]]
    ordered: tuple[str, ...]
    bugs: tuple[Mutant, ...]
    calls: Callable[..., Calls]
    floors: Callable[..., dict[str, Floors]]
    largest: tuple[tuple[tuple[tuple[int, ...], ...], tuple[dict[str, Any], ...]], ...]
    independent: tuple[tuple[str, str], ...] = ()
    many_blocks: tuple[str, ...] = ()
    gate: str | None = None
    reads: dict[str, int] = field(default_factory=dict)
    serial: tuple[str, ...] = ()
