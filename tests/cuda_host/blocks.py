"""The blocks whose kernels run on the host execution layer, from the case table."""

from __future__ import annotations

import dataclasses
import itertools
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
