"""The selective kernel's passes on the host execution layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import activations, ops, reference
from tests.cases.calls import Call, Calls, Make
from tests.cases.sk.bugs import BUGS
from tests.cuda_host.kernels import Bytes, Floor, Floors, Kernels, Plans
from tests.cuda_host.problems import Problem, Shape, map_bytes


@dataclass(frozen=True)
class SkProblem(Problem):
    """The selective kernel behind given logits; h and w are a branch's, c its channels.

    Attributes:
        m: Branches.
        slices: Whether they lie in one map.
        to_mean: Whether the mean gets a gradient.
        prologue: The activation of the prologue through which the forward reads them, if any. The
            backward, which has none, is that of the branches themselves.
    """

    m: int
    slices: bool = False
    to_mean: bool = True
    prologue: str = ""

    frozen = ("prologue",)

    block = "sk"

    @property
    def _maps(self) -> dict[str, Shape]:
        if self.slices:
            return {"x": (self.n, self.m * self.c, self.h, self.w)}
        return {f"x{m}": self.map_shape for m in range(self.m)}

    @property
    def inputs(self) -> dict[str, Shape]:
        gates = (self.n, self.m, self.c)
        small = {"dpooled": (self.n, self.c)} if self.to_mean else {}
        prologue = {"prologue": (2, self.m, self.c)} if self.prologue else {}
        return {"dy": self.map_shape, **small, "logits": gates, **self._maps, **prologue}

    @property
    def outputs(self) -> dict[str, Shape]:
        gates = (self.n, self.m, self.c)
        forward = {"pooled": (self.n, self.c), "y": self.map_shape}
        return {**forward, "dlogits": gates, **{f"d{k}": v for k, v in self._maps.items()}}

    @property
    def options(self) -> dict[str, Any]:
        act, param = activation(self.prologue) if self.prologue else (1, 0.0)
        return {"branches": self.m, "act": act, "act_param": param}

    @property
    def operators(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("sk_squeeze", "sk_select"), ("sk_dot", "sk_gradient")

    def is_zero(self, name: str) -> bool:
        return name == "dlogits" and self.m == 1  # a softmax of one number is 1


PROBLEMS = (
    SkProblem("one", 2, 9, 7, 5, 1),
    SkProblem("tiles", 3, 10, 9, 9, 4, to_mean=False),
    SkProblem("tiles_slices", 2, 52, 9, 9, 3, slices=True),
    SkProblem("wide", 2, 140, 3, 3, 2),
    SkProblem("planes_by_warp_slices", 2, 4, 23, 23, 3, slices=True),
    SkProblem("planes_by_block_slices", 2, 4, 33, 33, 2, slices=True, to_mean=False),
    SkProblem("planes_in_parts", 1, 2, 95, 97, 2),
    SkProblem("rows", 2, 36, 9, 9, 3, to_mean=False, channels_last=True),
    SkProblem("rows_by_element", 2, 33, 9, 9, 2, channels_last=True),
    SkProblem("rows_slices", 2, 68, 9, 9, 4, slices=True, channels_last=True),
    SkProblem("prologue_tiles", 3, 10, 9, 9, 4, prologue="relu"),
    SkProblem("prologue_tiles_slices", 2, 52, 9, 9, 3, slices=True, prologue="relu"),
    SkProblem("prologue_planes_by_warp", 2, 4, 23, 23, 2, prologue="relu"),
    SkProblem("prologue_planes_in_parts", 1, 2, 95, 97, 2, prologue="relu"),
    SkProblem("prologue_rows", 2, 36, 9, 9, 3, channels_last=True, prologue="relu"),
    SkProblem("prologue_rows_by_element", 2, 33, 9, 9, 2, channels_last=True, prologue="relu"),
    SkProblem("activated_tiles", 3, 10, 9, 9, 2, prologue="silu"),
    SkProblem("activated_planes_by_warp", 2, 4, 23, 23, 2, prologue="leaky_relu"),
    SkProblem("activated_rows", 2, 36, 9, 9, 2, channels_last=True, prologue="elu"),
    SkProblem(
        "normalised_rows_by_element", 2, 33, 9, 9, 2, channels_last=True, prologue="identity"
    ),
)


def _formula(
    problem: SkProblem, logits: Tensor, prologue: Tensor | None = None, **maps: Tensor
) -> dict[str, Tensor]:
    branches = maps["x"].chunk(problem.m, 1) if problem.slices else tuple(maps.values())
    y, _ = reference.select_branches(branches, logits)
    pooled = reference.squeeze_branches(branches)
    if prologue is not None:  # other values, the same gradients
        with torch.no_grad():
            act = ops.activation_of_code(*activation(problem.prologue))
            after = reference.after_prologue(branches, prologue.flatten(1), act)
            y.copy_(reference.select_branches(after, logits)[0])
            pooled.copy_(reference.squeeze_branches(after))
    return {"pooled": pooled, "y": y}


def activation(name: str) -> tuple[int, float]:
    """Its code and a parameter that is not the default."""
    found = activations.ACTIVATIONS[name]
    return found.code, 1.5 * found.param


def loads(problem: Problem, _: Plans) -> tuple[Bytes, Bytes]:
    """Every branch in both passes of the forward, and once in the backward."""
    maps = {k: b for k, b in map_bytes(problem.inputs).items() if k[0] == "x"}
    return {k: 2 * b for k, b in maps.items()}, {"dy": 2 * problem.map_bytes, **maps}


def calls(
    make: Make,
    shape: tuple[int, int, int, int],
    m: int = 2,
    prologue: str = "",
    to_mean: bool = True,
    like_dy: bool = True,
) -> Calls:
    """``prologue``: its activation, if any. ``to_mean``: the mean has a gradient.

    ``like_dy``: the branches' have the format of dy.
    """
    n, c = shape[:2]
    dy, branches = make.map("dy", *shape), [make.map("x", *shape) for _ in range(m)]
    logits, pooled = make.sums("logits", n, m, c), make.sums("pooled", n, c)
    before: tuple[Any, ...] = (None, 1, 0.0)
    if prologue:
        before = make.sums("prologue", 2, m, c), *activation(prologue)
    channels_last = (ops.memory_format_of(dy) == torch.channels_last) == like_dy
    gradient = (dy, logits, pooled if to_mean else None, channels_last, False)
    return Calls(
        [Call("sk_squeeze", (branches, *before)), Call("sk_select", (branches, logits, *before))],
        [Call("sk_dot", (dy, logits, branches)), Call("sk_gradient", gradient)],
    )


def floors(m: int = 2, prologue: Any = "", **_: Any) -> dict[str, Floors]:
    """Eager, by the operations of timm and their gradients: stack, sum, mean, mul, sum.

    A prologue is a batch norm and an activation before them.
    """
    before = 2 * m if prologue else 0
    return {
        "forward": Floors(
            Floor(before + 4 * m + 1, before + 2 * m + 2), Floor(2 * m, 1), Floor(m, 1)
        ),
        "backward": Floors(Floor(3 * m + 2, 3 * m), Floor(m + 2, m), Floor(m + 1, m)),
    }


KERNELS = Kernels(
    "sk",
    ("blocks/sk/passes.cu",),
    PROBLEMS,
    _formula,
    loads,
    ordered=("tiles", "tiles_slices", "rows_by_element"),
    bugs=BUGS,
    calls=calls,
    floors=floors,
    largest=(
        (
            ((1, 4, 8, 8), (1, 4, 32, 32), (1, 256, 2, 2), (1, 66, 2, 2), (1, 33, 2, 2)),
            (
                {"m": 1},
                *({"m": m, "prologue": p} for m in (2, 3, 4) for p in ("", "relu")),
                {"prologue": "silu"},
            ),
        ),
    ),
    gate="(Softmax|Activated)Gate",
    reads={r"(?:Softmax|Activated)Gate<\w+, (\d)": 0},
)
