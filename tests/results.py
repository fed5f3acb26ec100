"""A case's results, from the backend under test, from plain PyTorch and in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import ops
from chattn_cuda.reference import accumulation_dtype
from tests.cases import BLOCKS, Case, make_inputs
from tests.compare import assert_close, shares


def results(
    outputs: tuple[Tensor, Tensor], x: Tensor, parameters: dict[str, Any], dy: Tensor, dgate: Tensor
) -> dict[str, Tensor]:
    """Outputs and all gradients, by name."""
    y, gate = outputs
    leaves = {"x": x, **{k: p for k, p in parameters.items() if p is not None}}
    gates = (gate,) if gate.requires_grad else ()  # a tail has statistics there
    grads = torch.autograd.grad(
        (y, *gates), list(leaves.values()), (dy, *(dgate.to(g) for g in gates))
    )
    return {"y": y, "gate": gate, **{f"d{k}": g for k, g in zip(leaves, grads, strict=True)}}


@dataclass(frozen=True)
class Compared:
    """One result under test beside what it is judged by; see `tests.compare.assert_close`."""

    name: str
    actual: Tensor
    exact: Tensor
    eager: Tensor
    dtype: torch.dtype
    memory_format: torch.memory_format | None
    allow_zero: bool

    def check(self) -> None:
        assert_close(
            self.name,
            self.actual,
            self.exact,
            self.eager,
            dtype=self.dtype,
            memory_format=self.memory_format,
            allow_zero=self.allow_zero,
        )

    def share(self) -> float:
        """The largest share of its bounds that the error takes; above 1 `check` fails."""
        found = shares(self.actual, self.exact, self.eager, self.dtype)
        return max((share.of_bound for share in found), default=0.0)


class Judge:
    """A case's inputs, its results in float64, and those of plain PyTorch."""

    def __init__(self, case: Case, seed: int) -> None:
        self.of = case.without_backend, seed
        block, options = BLOCKS[case.block], case.config.options
        self.inputs = inputs = make_inputs(case, seed)
        x, parameters, dy = inputs.to(torch.float64)
        y = block.run(x, parameters, options, "reference")
        self.exact = results(y, x, parameters, dy, inputs.dgate)
        x, parameters, dy = inputs.to(case.dtype)
        self.eager = results(block.eager(x, parameters, options), x, parameters, dy, inputs.dgate)


_last: list[Judge] = []


def judge(case: Case, seed: int) -> Judge:
    """The same one for a case's backends, which follow one another."""
    if not _last or _last[0].of != (case.without_backend, seed):
        _last[:] = [Judge(case, seed)]
    return _last[0]


def compared(case: Case, seed: int = 0) -> Iterator[Compared]:
    """All results of a case."""
    block, options = BLOCKS[case.block], case.config.options
    judged = judge(case, seed)
    inputs, exact, eager = judged.inputs, judged.exact, judged.eager

    x, parameters, dy = inputs.to(case.dtype, case.device)
    actual = results(
        block.run(x, parameters, options, case.backend), x, parameters, dy, inputs.dgate
    )
    for name, value in actual.items():
        memory_format: torch.memory_format | None = torch.contiguous_format
        if name == "y" or block.is_map(name[1:]):
            memory_format = ops.memory_format_of(x)
        if (case.backend == "reference" or not block.op) and name != "y":
            memory_format = None  # autograd of the formulas decides
        yield Compared(
            name,
            value,
            exact[name],
            eager[name],
            accumulation_dtype(case.dtype) if name == "gate" else case.dtype,
            memory_format,
            # One branch is y, whatever the weights are.
            case.config.shape[0] == 0 or options.get("m") == 1,
        )
