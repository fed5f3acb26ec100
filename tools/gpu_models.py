"""Whole models on a GPU: eager PyTorch, accelerated, compiled, and both, in at most six minutes.

    make gpu-models                            or: python tools/gpu_models.py
    python tools/gpu_models.py --rehearse      the same on the CPU, with small networks

Training and inference in bfloat16 (autocast) and channels_last. First eager and accelerated models
are measured, then each row again with the compiled ones, in turn, as soon as they are compiled:
that goes on beside, most valuable rows first. The table tells what was left when time was over.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gpu_results
from gpu_main import ASIDE, BUILT, Plan, main, step_import
from gpu_results import left
from gpu_runner import SHARED, Step

if TYPE_CHECKING:
    import variants

SECONDS = 340  # with what comes before the first step, six minutes
TABLE = "models"
NAMES = (
    "seresnet50", "skresnet50", "efficientnet_b0", "regnety_032", "ecaresnet50d",
    "mobilenetv3_large_100",
)  # fmt: skip
ANCHOR = "resnet50"  # what the attention costs
FIRST = 3  # of the names: they are compiled before all others
TINY = {"seresnet": "se", "ecaresnet": "eca"}  # for rehearsals: ResNets of four layers


@dataclass(frozen=True)
class Row:
    """A network and what is done with it."""

    name: str
    training: bool
    batch: int

    def __str__(self) -> str:
        return f"{self.name} {'training' if self.training else 'inference'}, batch {self.batch}"

    @property
    def variants(self) -> tuple[str, ...]:
        """What is measured; there is nothing to accelerate in the anchor."""
        if self.name in (ANCHOR, "tiny"):
            return ("eager", "compiled")
        return ("eager", "accelerated", "compiled", "both")


def rows(rehearse: bool) -> list[Row]:
    """All rows, in the order in which they are reported and measured without a compiler."""
    batch = 2 if rehearse else 128
    names = (*TINY, "tiny") if rehearse else (*NAMES, ANCHOR)
    work = ((True, batch), (False, batch), (False, 1))
    return [Row(name, training, n) for name in names for training, n in work]


def by_value(found: list[Row]) -> list[Row]:
    """In the order in which they are compiled: a training step takes longest, and matters most."""
    names = list(dict.fromkeys(row.name for row in found))
    first = [row for row in found if names.index(row.name) < FIRST]
    others = [row for row in found if row not in first]
    first.sort(key=lambda row: not row.training)
    return first + sorted(others, key=lambda row: row.training)


# ---- processes ----------------------------------------------------------------------------------
def subject(row: Row, rehearse: bool) -> variants.Subject:
    """The row's network, on the device."""
    import torch
    from torch import nn
    from variants import Subject, device, network

    name, options = row.name, {}
    if rehearse:
        gate = {"attn_layer": TINY[row.name]} if row.name in TINY else {}
        name, options = "resnet18", {"layers": (1, 1, 1, 1), "block_args": gate}
    model = network(name, row.training, torch.channels_last, **options)
    size = 32 if rehearse else 224
    x = torch.randn(row.batch, 3, size, size, device=device())
    x = x.contiguous(memory_format=torch.channels_last)

    def call(module: nn.Module) -> list[torch.Tensor]:
        if not row.training:
            with torch.inference_mode(), torch.autocast(device(), torch.bfloat16):
                return [module(x)]
        with torch.autocast(device(), torch.bfloat16):
            loss = module(x).float().square().mean()
        loss.backward()
        module.zero_grad(set_to_none=True)
        return [loss]

    repeat, rounds = (2, 10) if row.training else (4, 15) if row.batch > 1 else (8, 25)
    inputs = x.numel() * x.element_size()
    return Subject(TABLE, str(row), "ms", model, call, inputs, rounds, repeat)


def step_eager(rehearse: bool) -> int:
    """Every row without a compiler, so that there is a whole table early."""
    from gpu_turns import measure_in_turn
    from variants import EAGER, OURS, make_ready

    done, records = 0, Path(os.environ[gpu_results.FILE])
    for row in rows(rehearse):
        names = [name for name in row.variants if name in (EAGER, OURS)]
        if left() < 3:
            break
        if (TABLE, str(row)) in gpu_results.rows(gpu_results.read(records)):
            continue  # with all of its variants, by its own process
        of_row = subject(row, rehearse)
        done += measure_in_turn(of_row, make_ready(of_row, names), 1.0)
    print(f"RESULT {done} rows")
    return 0


def step_row(row: Row, rehearse: bool) -> int:
    """One row, once it is compiled."""
    from gpu_turns import measure_in_turn, ready
    from variants import BOTH, COMPILED, make_ready

    of_row = subject(row, rehearse)
    made = make_ready(of_row, [COMPILED])
    if BOTH in row.variants:
        _wait_for(Path(os.environ[SHARED], BUILT))
        if not _claim(row):  # another process compiles it, and leaves it in Inductor's cache
            _wait_for(_done(row))
        made |= make_ready(of_row, [BOTH])
    made = make_ready(of_row, [n for n in row.variants if n not in (COMPILED, BOTH)]) | made
    ready()
    return 0 if measure_in_turn(of_row, made, 3.0) else 124


def step_ahead(row: Row, rehearse: bool) -> int:
    """Compiles one of the row's networks beside the row's own process."""
    from variants import BOTH, make_ready

    if _claim(row):
        try:
            make_ready(subject(row, rehearse), [BOTH])
        finally:
            _done(row).touch()
    return 0


def _claim(row: Row) -> bool:
    """Whether this process, and no other, is to compile it."""
    try:
        Path(os.environ[SHARED], f"{row} claimed").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _done(row: Row) -> Path:
    return Path(os.environ[SHARED], f"{row} done")


def _wait_for(path: Path) -> None:
    while not path.exists() and left() > 0:
        time.sleep(0.1)


# ---- the plan -----------------------------------------------------------------------------------
def plan(rehearse: bool) -> list[Step]:
    """What comes after the build."""
    own = [sys.executable, str(Path(__file__).resolve()), *(["--rehearse"] if rehearse else [])]
    found = by_value(rows(rehearse))
    steps = [Step("eager", [*own, "--step", "eager"], 200, needs=("import",))]
    for row in found:
        which = str(rows(rehearse).index(row))
        # The first training rows do not wait for the build: what is compiled first needs none.
        early = row.training and row in found[:FIRST]
        needs = () if early else ("import",)
        command = [*own, "--step", "row", which]
        steps.append(Step(str(row), command, SECONDS, needs=needs, aside=True, env=ASIDE))
        if row.training and "both" in row.variants:
            command = [*own, "--step", "ahead", which]
            name = f"{row}, ahead"
            steps.append(Step(name, command, SECONDS, needs=("import",), aside=True, env=ASIDE))
    return steps


def promised(rehearse: bool) -> dict[tuple[str, str], tuple[str, ...]]:
    """The variants of each row."""
    return {(TABLE, str(row)): row.variants for row in rows(rehearse)}


def run_step(words: list[str], rehearse: bool) -> int:
    """One step, in the process that was started for it."""
    if words == ["import"]:
        return step_import()
    if words == ["eager"]:
        return step_eager(rehearse)
    name, which = words
    return {"row": step_row, "ahead": step_ahead}[name](rows(rehearse)[int(which)], rehearse)


if __name__ == "__main__":
    sys.exit(main(Plan("gpu-models", SECONDS, plan, promised, run_step)))
