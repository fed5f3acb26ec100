"""Squeeze-and-excitation's CUDA kernels on the host execution layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from tests.cases.calls import Call, Calls, Make
from tests.cases.se.bugs import BUGS
from tests.cuda_host.kernels import Bytes, Kernels, Plans, floors_of_one_map
from tests.cuda_host.problems import IDENTITY, SIGMOID, SILU, Problem, Shape


@dataclass(frozen=True)
class SeProblem(Problem):
    """Squeeze-and-excitation; rd = 0: effective, with one layer."""

    rd: int

    block = "se"

    @property
    def inputs(self) -> dict[str, Shape]:
        c, rd, size = self.c, self.rd, self.map_shape
        first = {"w1": (rd, c), "b1": (rd,)} if rd else {}
        return {"x": size, "dy": size, **first, "w2": (c, rd or c), "b2": (c,)}

    @property
    def outputs(self) -> dict[str, Shape]:
        n, c, rd, size = self.n, self.c, self.rd, self.map_shape
        hidden = {"hidden": (n, rd)} if rd else {}
        weights = {f"d{k}": v for k, v in self.inputs.items() if k not in ("x", "dy")}
        return {"y": size, "pooled": (n, c), **hidden, "gate": (n, c), "dx": size, **weights}

    @property
    def options(self) -> dict[str, Any]:
        return {"rd": self.rd, "act": SILU if self.rd else IDENTITY}


PROBLEMS = (
    SeProblem("tiles", 2, 33, 7, 5, 40),
    SeProblem("tiles_by_word", 3, 64, 9, 9, 8),
    SeProblem("planes_by_block", 1, 6, 40, 40, 3),
    SeProblem("planes_in_parts", 1, 2, 95, 97, 2),
    SeProblem("planes_by_warp", 1, 11, 23, 23, 4),
    SeProblem("rows", 2, 36, 9, 9, 5, channels_last=True),
    SeProblem("rows_by_element", 2, 33, 7, 9, 7, channels_last=True),
    SeProblem("wide", 2, 520, 3, 3, 70),
    SeProblem("batch", 70, 20, 2, 2, 6),
    SeProblem("batch_wide", 66, 260, 1, 2, 34),
    SeProblem("batch_rows", 33, 12, 3, 1, 6, channels_last=True),
    SeProblem("deep", 2, 1100, 1, 1, 8),
    SeProblem("without_clusters", 20, 72, 2, 2, 70, sm=80),
    SeProblem("parts", 2, 64, 24, 24, 16, channels_last=True),
    SeProblem("parts_batch", 17, 32, 28, 28, 4, channels_last=True, sm=80),
    SeProblem("one_layer", 3, 70, 9, 9, 0),
    SeProblem("one_layer_rows", 2, 36, 24, 24, 0, channels_last=True),
)


def _formula(
    problem: SeProblem, x: Tensor, w2: Tensor, b2: Tensor, w1: Any = None, b1: Any = None
) -> dict[str, Tensor]:
    act = torch.nn.functional.silu if problem.rd else torch.nn.Identity()
    y, gate = reference.squeeze_excite(x, w1, b1, w2, b2, act)
    pooled = x.mean((2, 3))
    hidden = {"hidden": pooled @ w1.T + b1} if problem.rd else {}
    return {"pooled": pooled, **hidden, "gate": gate, "y": y}


def _loads(problem: SeProblem, _: Plans) -> tuple[Bytes, Bytes]:
    size = problem.map_bytes
    return {"x": 2 * size}, {"dy": 2 * size, "x": size}


def reduced(channels: int) -> int:
    """Hidden channels of timm's SE module: a sixteenth, rounded to a multiple of 8."""
    rd = max(8, (channels // 16 + 4) // 8 * 8)
    return rd + 8 if rd < 0.9 * channels / 16 else rd


def calls(
    make: Make,
    shape: tuple[int, int, int, int],
    rd: int | None = None,
    act: int = 1,
    act_param: float = 0.01,
    gate: int = SIGMOID,
    bias: bool = True,
    to_gate: bool = False,
    needs: tuple[bool, bool] = (True, True),
) -> Calls:
    """``rd``: by default as in timm; 0 for one layer. ``to_gate``: the gate has a gradient."""
    n, c = shape[:2]
    rd = reduced(c) if rd is None else rd
    x, dy = make.map("x", *shape), make.map("dy", *shape)
    w1 = make.weight("w1", rd, c) if rd else None
    b1 = make.weight("b1", rd) if rd and bias else None
    w2 = make.weight("w2", c, rd or c)
    b2 = make.weight("b2", c) if bias else None
    dgate = make.sums("dgate", n, c) if to_gate else None
    hidden = make.sums("hidden", n, rd) if rd else make.sums("hidden", 0)
    saved = (make.sums("pooled", n, c), hidden, make.sums("gate", n, c))
    how = (act if rd else IDENTITY, act_param, gate)
    return Calls(
        [Call("se_forward", (x, w1, b1, w2, b2, *how))],
        [Call("se_backward", (dy, dgate, x, *saved, w1, w2, *how, *needs))],
    )


KERNELS = Kernels(
    "se",
    ("blocks/se/launch.cu",),
    PROBLEMS,
    _formula,
    _loads,
    ordered=("tiles", "tiles_by_word", "rows"),
    bugs=BUGS,
    calls=calls,
    floors=floors_of_one_map,
    largest=(
        (
            ((1, 4, 8, 8), (1, 4, 32, 32), (1, 256, 2, 2), (1, 66, 2, 2), (1, 33, 2, 2)),
            ({"rd": 4}, {"rd": 0}),
        ),
        (((65, 4, 1, 1),), ({"rd": 33},)),
    ),
    many_blocks=("wide", "batch_rows", "batch_wide", "parts_batch"),
    gate="MlpForwardGate",
    reads={r"Mlp(?:Forward|Backward)Gate<": 1},
)
