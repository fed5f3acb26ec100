"""The fused tail on the host execution layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import ops
from chattn_cuda.ops.block import activation_of_code
from tests.cases.calls import Call, Calls, Make
from tests.cases.tail.bugs import BUGS
from tests.cuda_host.kernels import Bytes, Floor, Floors, Kernels, Plans
from tests.cuda_host.problems import IDENTITY, SILU, Problem, Shape

RELU, RELU6, LEAKY_RELU, HARD_SWISH = 1, 2, 3, 5
_MASKED = (RELU, RELU6)
_EPS, _SLOPE = 1e-3, 0.1


@dataclass(frozen=True)
class TailProblem(Problem):
    """A tail whose gate is an input, and whose mean has a gradient of its own.

    Attributes:
        inner: Code of the activation in front of the gate.
        act: Of the one behind the residual.
        residual: Whether there is one.
        gate: Whether there is one; else nothing is pooled.
        of_batch: Whether the norm is by the batch's statistics.
        affine: Whether it has a weight and a bias.
        lost: Whether what all positions lose is given.
    """

    inner: int = IDENTITY
    act: int = RELU
    residual: bool = True
    gate: bool = True
    of_batch: bool = True
    affine: bool = True
    lost: bool = False

    frozen = ("mean", "var", "lost")

    block = "tail"

    @property
    def masked(self) -> bool:
        return self.residual and self.act in _MASKED

    @property
    def _sums(self) -> int:
        return 2 if self.inner == IDENTITY else 5

    @property
    def inputs(self) -> dict[str, Shape]:
        size, planes, channels = self.map_shape, (self.n, self.c), (self.c,)
        return {
            "x": size,
            **({"residual": size} if self.residual else {}),
            **({"weight": channels, "bias": channels} if self.affine else {}),
            **({"gate": planes} if self.gate else {}),
            **({} if self.of_batch else {"mean": channels, "var": channels}),
            **({"lost": (2, self.c)} if self.lost else {}),
            "dy": size,
            **({"dpooled": planes} if self.gate else {}),
        }

    @property
    def outputs(self) -> dict[str, Shape]:
        size, planes, channels = self.map_shape, (self.n, self.c), (self.c,)
        words = math.ceil(math.prod(size) / 32)  # arrays here are of four bytes
        return {
            "numbers": (4, self.c),
            **({"variance": channels} if self.of_batch else {}),
            **({"means": planes} if self.gate and self.inner == IDENTITY else {}),
            **({"pooled": planes} if self.gate else {}),
            "y": size,
            **({"mask": (words,)} if self.masked else {}),
            "sums": (self.n, self._sums, self.c),
            **({"dgate": planes} if self.gate else {}),
            "dx": size,
            **({"dresidual": size} if self.residual else {}),
            **({"dweight": channels, "dbias": channels} if self.affine else {}),
        }

    @property
    def options(self) -> dict[str, Any]:
        params = {"inner_param": _SLOPE, "act_param": _SLOPE}
        codes = {"inner": self.inner, "act": self.act}
        return {**codes, **params, "eps": _EPS, "of_batch": self.of_batch}

    @property
    def operators(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("tail_squeeze", "tail_apply"), ("tail_reduce", "tail_gradient")


_ROWS = {"channels_last": True}
PROBLEMS = (
    TailProblem("tiles", 3, 16, 7, 5),
    TailProblem("tiles_ragged", 3, 13, 7, 5),
    TailProblem("far_from_zero", 3, 16, 20, 20, act=IDENTITY, offset=1e4),
    TailProblem("far_from_zero_rows", 3, 16, 7, 7, act=IDENTITY, offset=1e4, **_ROWS),
    TailProblem("planes", 2, 3, 24, 25, act=LEAKY_RELU, affine=False),
    TailProblem("planes_in_parts", 1, 2, 130, 132, act=RELU6, gate=False),
    TailProblem("many_samples", 37, 8, 3, 3),
    TailProblem("rows", 40, 72, 3, 3, **_ROWS),
    TailProblem("rows_in_parts", 1, 24, 40, 41, **_ROWS),
    TailProblem("rows_ragged", 2, 70, 5, 5, act=LEAKY_RELU, **_ROWS),
    TailProblem("rows_by_element", 2, 33, 9, 9, residual=False, **_ROWS),
    TailProblem("pair", 2, 20, 7, 7, residual=False, gate=False),
    TailProblem("together", 3, 16, 7, 5, lost=True),
    TailProblem("pair_rows", 2, 20, 7, 7, residual=False, gate=False, of_batch=False, **_ROWS),
    TailProblem("fixed", 3, 10, 9, 9, act=IDENTITY, of_batch=False),
    TailProblem("fixed_alone", 3, 10, 9, 9, of_batch=False, gate=False, affine=False),
    TailProblem("inner_tiles", 3, 20, 7, 5, SILU, IDENTITY, residual=False),
    TailProblem("inner_planes", 2, 3, 24, 25, RELU, RELU, of_batch=False),
    TailProblem("inner_planes_in_parts", 1, 2, 130, 131, HARD_SWISH, SILU),
    TailProblem("inner_rows", 2, 72, 5, 5, SILU, LEAKY_RELU, **_ROWS),
    TailProblem("inner_rows_in_parts", 1, 24, 40, 41, RELU6, IDENTITY, residual=False, **_ROWS),
    TailProblem("inner_together", 3, 9, 7, 5, SILU, IDENTITY, affine=False, lost=True, **_ROWS),
    TailProblem("smooth", 3, 16, 7, 5, act=SILU),
    TailProblem("smooth_rows", 2, 36, 9, 9, act=SILU, gate=False, **_ROWS),
)


def _formula(
    problem: TailProblem, x: Tensor, residual: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, gate: Tensor | None = None, mean: Tensor | None = None,
    var: Tensor | None = None, lost: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    found = {}
    if mean is None or var is None:
        of_norm = x if lost is None else x.detach()
        var, mean = torch.var_mean(of_norm, (0, 2, 3), correction=0)
        found["variance"] = var
        if lost is not None:
            constant, slope = lost[:, :, None, None]
            of_each = constant + slope * (of_norm - mean[:, None, None])
            x = x.clone()
            x.register_hook(lambda g: g - of_each)
    deviation = torch.rsqrt(var + _EPS)
    scale = deviation if weight is None else weight * deviation
    shift = (0 if bias is None else bias) - mean * scale
    v = x * scale[:, None, None] + shift[:, None, None]  # as torch's CPU kernels do
    w = activation_of_code(problem.inner, _SLOPE)(v)
    z = w if gate is None else w * gate[:, :, None, None]
    y = activation_of_code(problem.act, _SLOPE)(z if residual is None else z + residual)
    found["numbers"] = torch.stack([scale, shift, mean, deviation])
    if gate is not None:
        found["pooled"] = w.mean((2, 3))
    return {**found, "y": y}


def _loads(problem: TailProblem, plans: Plans) -> tuple[Bytes, Bytes]:
    size = problem.map_bytes
    squeezes = plans["tail_squeeze"]["moments"] + plans["tail_squeeze"]["pools"]
    forward = {"x": (squeezes + 1) * size}
    backward = {"dy": 2 * size, "x": 2 * size}
    if problem.residual:
        reads = not problem.masked and problem.act != IDENTITY
        forward["residual"], backward["residual"] = size, 2 * size if reads else 0
    return forward, backward


def calls(
    make: Make,
    shape: tuple[int, int, int, int],
    inner: int = IDENTITY,
    act: int = RELU,
    residual: bool = True,
    gate: bool = True,
    of_batch: bool = True,
    train: bool = True,
    lost: bool = False,
) -> Calls:
    """``train``: with a mask."""
    n, c, h, w = shape
    x, dy = make.map("x", *shape), make.map("dy", *shape)
    r = make.map("residual", *shape) if residual else None
    weight, bias = make.weight("weight", c), make.weight("bias", c)
    mean, var = (None, None) if of_batch else (make.weight("mean", c), make.weight("var", c))
    running: list[Tensor] = []
    if of_batch and train:
        running = [make.weight("running_mean", c), make.weight("running_var", c)]
        running.append(torch.zeros((), dtype=torch.int64, device=x.device))
    numbers, s = make.sums("numbers", 4, c), make.sums("gate", n, c) if gate else None
    functions = (inner, 0.0, act, 0.0)
    masked = residual and act in _MASKED and train
    pitch, rows = (
        (c, n * h * w) if ops.memory_format_of(x) == torch.channels_last else (h * w, n * c)
    )
    mask = None
    if masked:
        mask = torch.ones(rows, math.ceil(pitch / 8), dtype=torch.uint8, device=x.device)
    kept = r if residual and not masked and act != IDENTITY else None
    sums = make.sums("sums", n, 2 if inner == IDENTITY else 5, c)
    planes = make.sums("means", n, c) if gate else None
    given = make.sums("lost", 2, c) if lost else None
    maps = (dy, x, kept, mask, numbers, s)
    return Calls(
        [
            Call(
                "tail_squeeze",
                (x, weight, bias, mean, var, running, 0.1, 1e-5, inner, 0.0, gate),
            ),
            Call("tail_apply", (x, r, numbers, s, *functions, masked)),
        ],
        [
            Call("tail_reduce", (*maps, *functions, gate)),
            Call(
                "tail_gradient",
                (*maps, sums, planes, planes, weight, given, *functions, of_batch, True,
                 residual and act != IDENTITY, True),
            ),
        ],
    )  # fmt: skip


def _floors(
    inner: int = IDENTITY,
    act: int = RELU,
    residual: bool = True,
    gate: bool = True,
    of_batch: bool = True,
    train: bool = True,
    lost: bool = False,
) -> dict[str, Floors]:
    """Eager, by the operations of torch: norm, activation, mean, product, sum, activation."""
    before, behind = inner != IDENTITY, act != IDENTITY
    folds = (of_batch or (gate and not before)) + (gate and before)
    reads = residual and behind and not (train and act in _MASKED)
    of_norm = 2 if of_batch else 1
    return {
        "forward": Floors(
            Floor(
                of_norm + before + 2 * gate + 2 * residual + behind,
                1 + before + gate + residual + behind,
            ),
            Floor(folds + 1 + residual, 1),
            Floor(1 + residual, 1),
        ),
        "backward": Floors(
            Floor(4 + 2 * before + 6 * gate + 2 * behind, 1 + before + 3 * gate + behind),
            Floor(4 + 2 * reads, 1 + (residual and behind)),
            Floor(2 + reads, 1 + (residual and behind)),
        ),
    }


KERNELS = Kernels(
    "tail",
    ("blocks/tail/launch.cu",),
    PROBLEMS,
    _formula,
    _loads,
    ordered=("tiles", "rows_ragged", "inner_tiles"),
    bugs=BUGS,
    calls=calls,
    floors=_floors,
    largest=(
        (
            ((1, 8, 8, 8), (1, 4, 32, 32), (1, 256, 2, 2), (1, 33, 2, 2)),
            ({}, {"inner": SILU, "act": IDENTITY, "residual": False}),
        ),
    ),
    many_blocks=("rows",),
    gate="TailGate",
    reads={
        "TailGate<": 1,
        "TailGradientGate<": 2,
        "MomentsOp<": 1,
        "TailDotOp<": 2,
        "TailSumsOp<": 2,
    },
)
