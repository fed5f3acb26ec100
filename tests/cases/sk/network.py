"""The selective kernel as one operator, with its network, on the host execution layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.sk import FAKES
from tests.cases.calls import Call, Calls, Make
from tests.cases.sk.cuda import floors, loads
from tests.cases.sk.network_bugs import BUGS
from tests.cuda_host.kernels import Kernels
from tests.cuda_host.problems import Problem, Shape

NO_NORM, FIXED, OF_BATCH = "none", "fixed", "batch"


@dataclass(frozen=True)
class SkBlockProblem(Problem):
    """The selective kernel with its network.

    Attributes:
        m: Branches.
        d: Hidden units.
        norm: Of the hidden values: NO_NORM, FIXED or OF_BATCH.
    """

    m: int
    d: int
    norm: str

    frozen = ("mean", "var")

    block = "sk_block"

    @property
    def inputs(self) -> dict[str, Shape]:
        d, rows, of_unit = self.d, self.m * self.c, (self.d,)
        maps = {f"x{m}": self.map_shape for m in range(self.m)}
        layers = {"w_reduce": (d, self.c), "b_reduce": of_unit, "w_select": (rows, d),
                  "b_select": (rows,)}  # fmt: skip
        affine = {"weight": of_unit, "bias": of_unit} if self.norm != NO_NORM else {}
        fixed = {"mean": of_unit, "var": of_unit} if self.norm == FIXED else {}
        given = {"dy": self.map_shape, "dlogits": (self.n, self.m, self.c)}
        return {**given, **maps, **layers, **affine, **fixed}

    @property
    def outputs(self) -> dict[str, Shape]:
        units = (self.n, self.d)
        before = {"hidden": units} if self.norm != NO_NORM else {}
        batch = {"batch_mean": (self.d,), "batch_var": (self.d,)} if self.norm == OF_BATCH else {}
        forward = {"pooled": (self.n, self.c), **before, **batch, "activated": units,
                   "logits": (self.n, self.m, self.c), "y": self.map_shape}  # fmt: skip
        leaves = {k: v for k, v in self.inputs.items() if k[0] != "d" and k not in self.frozen}
        return {**forward, **{f"d{k}": v for k, v in leaves.items()}}

    @property
    def options(self) -> dict[str, Any]:
        return {"branches": self.m, "hidden": self.d, "norm": self.norm, "eps": 1e-3}

    @property
    def operators(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("sk_forward",), ("sk_backward",)

    def is_zero(self, name: str) -> bool:
        return name == "db_reduce" and self.norm == OF_BATCH


PROBLEMS = (
    SkBlockProblem("no_norm", 3, 10, 5, 5, 2, 6, NO_NORM),
    SkBlockProblem("fixed", 2, 36, 4, 4, 3, 12, FIXED, channels_last=True),
    SkBlockProblem("of_batch", 35, 12, 3, 3, 2, 9, OF_BATCH),
    SkBlockProblem("of_many", 140, 20, 2, 1, 4, 20, OF_BATCH),
    SkBlockProblem("split", 3, 520, 2, 2, 1, 72, OF_BATCH),
    SkBlockProblem("split_without_clusters", 3, 520, 2, 2, 2, 72, FIXED, sm=80),
)


def _formula(
    problem: SkBlockProblem, w_reduce: Tensor, b_reduce: Tensor, w_select: Tensor,
    b_select: Tensor, weight: Any = None, bias: Any = None, mean: Any = None, var: Any = None,
    **maps: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    branches = tuple(maps.values())
    pooled = reference.squeeze_branches(branches)
    h = before = pooled @ w_reduce.T + b_reduce
    saved = {} if problem.norm == NO_NORM else {"hidden": before}
    if problem.norm == OF_BATCH:
        mean, var = before.mean(0), before.var(0, correction=0)
        saved |= {"batch_mean": mean, "batch_var": var}
    if problem.norm != NO_NORM:
        h = (before - mean) / (var + 1e-3).sqrt() * weight + bias
    activated = torch.relu(h)
    logits = (activated @ w_select.T + b_select).unflatten(1, (problem.m, -1))
    y, _ = reference.select_branches(branches, logits)
    return {"pooled": pooled, **saved, "activated": activated, "logits": logits, "y": y}


def _calls(
    make: Make,
    shape: tuple[int, int, int, int],
    m: int = 2,
    d: int = 32,
    norm: str = "batch",
    prologue: bool = False,
) -> Calls:
    """``d``: hidden units; ``norm``: "none", "fixed" or "batch"."""
    c, of_batch = shape[1], norm == "batch"
    dy, branches = make.map("dy", *shape), [make.map("x", *shape) for _ in range(m)]

    def units(there: bool) -> list[Tensor | None]:
        return [make.weight("unit", d) if there else None for _ in range(2)]

    w1, b1 = make.weight("w1", d, c), make.weight("b1", d)
    w2, b2 = make.weight("w2", m * c, d), make.weight("b2", m * c)
    (weight, bias), statistics = units(norm != "none"), units(norm == "fixed")
    of_branches = [make.weight("prologue", m * c) for _ in range(4)] if prologue else []
    forward = (
        branches, w1, b1, weight, bias, w2, b2, *statistics, [], of_batch, 0.1, 1e-5, True,
        of_branches, 1e-5, 1, 0.0,
    )  # fmt: skip
    saved = FAKES["sk_forward"](*forward)[1:]
    wanted = 0b1111111 if norm != "none" else 0b1110011
    backward = (
        dy, None, branches, w1, weight, w2, *statistics, of_batch, 1e-5, True, *saved, False,
        wanted,
    )  # fmt: skip
    return Calls([Call("sk_forward", forward)], [Call("sk_backward", backward)])


NETWORK = Kernels(
    "sk_block",
    ("blocks/sk/network.cu", "blocks/sk/passes.cu"),
    PROBLEMS,
    _formula,
    loads,
    ordered=("no_norm", "of_batch"),
    independent=(("sk_weight_grads", "sk_pooled_grad"),),
    bugs=BUGS,
    calls=_calls,
    floors=floors,
    largest=(
        (
            ((2, 4, 4, 4), (17, 4, 1, 1), (2, 66, 1, 1), (2, 33, 1, 1)),
            tuple({"d": d, "norm": norm} for d in (4, 33) for norm in ("none", "fixed", "batch")),
        ),
        (((2, 33, 1, 1),), ({"m": 3, "norm": "none"},)),
        (((2, 4, 4, 4),), ({"norm": "fixed", "prologue": True},)),
    ),
    many_blocks=("of_many",),
)
