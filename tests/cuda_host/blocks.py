"""The blocks whose kernels run on the host execution layer, from the case table."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

from tests.cases import BLOCKS
from tests.cuda_host import build as builder
from tests.cuda_host.build import Unit
from tests.cuda_host.kernels import Kernels
from tests.cuda_host.mutation import Mutant
from tests.cuda_host.problems import Problem

KERNELS: dict[str, Kernels] = {k.name: k for block in BLOCKS.values() for k in block.kernels}
PROBLEMS: dict[str, tuple[Problem, ...]] = {name: k.problems for name, k in KERNELS.items()}
BUGS: tuple[Mutant, ...] = tuple(
    dataclasses.replace(bug, shown_by=name) for name, k in KERNELS.items() for bug in k.bugs
)
#: What a pass reads at a position of the map, by the fold or gate in a kernel's name: so many maps,
#: and as many as the number there.
_INPUTS = {
    r"SumOp<\w+, (\d)": 0,
    r"(?:Prologue|Activated)SumOp<\w+, (\d)": 0,
    r"DotOp<\w+, (\d)": 1,
    r"SpreadGate<": 1,
    **{name: maps for kernels in KERNELS.values() for name, maps in kernels.reads.items()},
}


def inputs_of(kernel: str) -> int | None:
    """How many maps a kernel reads at a position, from its name; None: it is no pass."""
    found = [
        more + int(match[1] if match.re.groups else 0)
        for pattern, more in _INPUTS.items()
        if (match := re.search(rf"(?:^|[ <]){pattern}", kernel))
    ]
    assert len(found) <= 1
    return found[0] if found else None


def build(block: str, csrc: Path, variant: str = "plain") -> Path:
    """A library for `direct.Process`, from csrc/ or a changed copy."""
    kernels = KERNELS[block]
    folder = Path(kernels.sources[0]).parent
    operators = itertools.chain(*kernels.problems[0].operators)
    structs = ",".join(name.title().replace("_", "") for name in operators)
    defines = (f'BLOCK_PLAN="{folder}/plan.h"', f"BLOCK_CALLS={structs}")
    sources = [Unit(csrc / name, ("CHATTN_T=float",)) for name in kernels.sources]
    sources.append(Unit(builder.HERE / "direct" / "direct.cpp", defines))
    return builder.build_library(f"direct_{block}", sources, variant=variant, csrc=csrc)


def shown_by(mutant: Mutant) -> str:
    """The block whose problems must show the bug."""
    if mutant.shown_by is not None:
        return mutant.shown_by
    for name, kernels in KERNELS.items():
        included = builder.includes(mutant.tree / kernels.sources[0], mutant.tree)
        if mutant.tree / mutant.file in included:
            return name
    raise AssertionError(f"no block's kernels include {mutant.file}")
