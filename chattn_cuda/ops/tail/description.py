"""What a tail computes, and its formulas in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda.ops.block import activation_of_code
from chattn_cuda.ops.blocks import BLOCKS
from chattn_cuda.ops.tail.together import Together
from chattn_cuda.reference import accumulation_dtype, in_type, no_autocast

__all__ = ["GATES", "Gate", "Norm", "Tail"]

GATES = ("se", "eca")
"""The blocks whose squeeze is the mean."""

_MASKED = (1, 2)  # ReLU, ReLU6: the derivative is 0 or 1


@dataclass(slots=True)
class Norm:
    """A batch norm of maps.

    Attributes:
        mean: (C,), running statistics to normalise by; None for those of the batch.
        var: As mean.
        eps: Added to the variance.
        running: Mean, variance and perhaps the count of updates, which follow those of the batch.
        momentum: The weight of the batch in them.
        together: The exchange with the other processes whose batches belong to it; None for this
            one's alone.
    """

    mean: Tensor | None
    var: Tensor | None
    eps: float
    running: Sequence[Tensor] = ()
    momentum: float = 0.0
    together: Together | None = None

    @property
    def of_batch(self) -> bool:
        """Whether it normalises by the statistics of the batch."""
        return self.mean is None


@dataclass(slots=True)
class Gate:
    """The block whose gate it is: its name, and the constants of its operators."""

    block: str
    constants: tuple[Any, ...]


@dataclass(slots=True)
class Tail:
    """All that is no differentiable tensor.

    Attributes:
        norm: The batch norm.
        gate: The gate; None for none.
        inner: Code and parameter of the activation between norm and gate.
        act: Of the one behind the residual.
        factors: (N, 1), by which samples are multiplied beside the gate, or None.
    """

    norm: Norm
    gate: Gate | None
    inner: tuple[int, float]
    act: tuple[int, float]
    factors: Tensor | None = None

    @property
    def functions(self) -> tuple[int, float, int, float]:
        """As the operators take them."""
        return *self.inner, *self.act

    @property
    def constants(self) -> tuple[Any, ...]:
        """As the operators of the whole tail take them: its functions, and the gate's."""
        return self.functions if self.gate is None else (*self.functions, *self.gate.constants)

    def operator(self, way: str) -> str:
        """The name of the operator of the whole tail, "forward" or "backward"."""
        return f"tail_{way}" if self.gate is None else f"tail_{self.gate.block}_{way}"

    @property
    def biases(self) -> list[int]:
        """Places, among the tensors, of those that first derivatives do not read."""
        of_gate = () if self.gate is None else BLOCKS[self.gate.block].biases
        return [3, *(3 + i for i in of_gate)]

    def is_masked(self, residual: Tensor | None) -> bool:
        """Whether a bit per position tells the activation's derivative, which is 0 or 1."""
        return residual is not None and self.act[0] in _MASKED

    def factor(self, x: Tensor, of_gate: Sequence[Tensor]) -> Tensor | None:
        """(N, C), by which the map is multiplied, from what the gate's forward returned."""
        if of_gate:
            return self._factor(of_gate[-1])
        factors = self.factors
        return factors if factors is None else factors.expand(x.shape[:2]).contiguous()

    def formula(
        self, numbers: Tensor | None, slope: Tensor | None, x: Tensor, residual: Tensor | None,
        weight: Tensor | None, bias: Tensor | None, *of_gate: Tensor | None,
    ) -> tuple[Tensor]:  # fmt: skip
        """Y in plain PyTorch, differentiable to any order.

        Args:
            numbers: What `tail_squeeze` made of the norm: by running statistics as they were then.
                None: as they are now.
            slope: A map of 0 and 1, with which the last activation multiplies; or None.
            x: The map in front of the norm.
            residual: A map, or None.
            weight: (C,) of the norm, or None.
            bias: As weight.
            *of_gate: What the gate's block takes beside its map.
        """
        acc = accumulation_dtype(x.dtype)
        with no_autocast(x.device.type):
            u = in_type(x, acc)
            if self.norm.mean is None or self.norm.var is None:
                var, mean = torch.var_mean(u, (0, 2, 3), correction=0)
                scale = torch.rsqrt(var + self.norm.eps)
            elif numbers is None:
                mean = in_type(self.norm.mean, acc)
                scale = torch.rsqrt(in_type(self.norm.var, acc) + self.norm.eps)
            else:
                mean, scale = numbers[2], numbers[3]
            if weight is not None:
                scale = scale * in_type(weight, acc)
            v = (u - mean[:, None, None]) * scale[:, None, None]
            if bias is not None:
                v = v + in_type(bias, acc)[:, None, None]
            w = activation_of_code(*self.inner)(v)
            if self.gate is not None:
                pooled = w.mean((2, 3), keepdim=True)
                w = w * self._factor(self.gate_formula(pooled, of_gate))[:, :, None, None]
            elif self.factors is not None:
                w = w * self.factors[:, :, None, None]
            if residual is not None:
                w = w + in_type(residual, acc)
            w = activation_of_code(*self.act)(w) if slope is None else w * in_type(slope, acc)
            return (in_type(w, x.dtype),)

    def _factor(self, gate: Tensor) -> Tensor:
        return gate if self.factors is None else gate * self.factors

    def gate_formula(self, pooled: Tensor, of_gate: Sequence[Tensor | None]) -> Tensor:
        """The gate (N, C) for the mean (N, C, 1, 1)."""
        assert self.gate is not None
        return BLOCKS[self.gate.block].formulas(pooled, *of_gate, *self.gate.constants)[1]
