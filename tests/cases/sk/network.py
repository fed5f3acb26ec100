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
