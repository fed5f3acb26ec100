"""What a block tells the code that all blocks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import activations

__all__ = ["Block", "activation_of_code", "memory_format_of"]

_ACTIVATION_OF_CODE = {a.code: a for a in activations.ACTIVATIONS.values()}


def activation_of_code(code: int, param: float = 0.0) -> Callable[[Tensor], Tensor]:
    """The function of one tensor that an operator's arguments name."""
    return _ACTIVATION_OF_CODE[code].with_param(param)


@dataclass(frozen=True)
class Block:
    """What distinguishes one block from another.

    Attributes:
        name: Prefix of its operators.
        tensors: Number of tensors that its forward takes, the map first.
        saved: Number of outputs after y; the backward needs them, and the last is the gate.
        biases: Which of the tensors the backward operator does not read.
        fake_forward: Shapes and strides of the forward operator's outputs.
        fake_backward: Shapes and strides of the backward operator's outputs.
        formulas: ``formulas(*tensors, *constants) -> (y, gate)`` in plain PyTorch, from which
            second derivatives come.
    """

    name: str
    tensors: int
    saved: int
    biases: tuple[int, ...]
    fake_forward: Callable[..., tuple[Tensor, ...]]
    fake_backward: Callable[..., tuple[Tensor, ...]]
    formulas: Callable[..., tuple[Tensor, Tensor]]

    def operands(self, tensors: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """What the backward operator reads: the map, the outputs after y, and the weights."""
        operands = [tensors[0], *outputs]
        for i in range(1, self.tensors):
            if i not in self.biases:
                operands.append(tensors[i])
        return operands

    def given(self, operands: Sequence[Any], biases: Sequence[Any]) -> list[Any]:
        """The forward's tensors, from the backward's and the biases."""
        weights, others = iter(operands[1 + self.saved :]), iter(biases)
        rest = range(1, self.tensors)
        return [operands[0], *(next(others if i in self.biases else weights) for i in rest)]


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The memory format of the outputs for a map ``x`` (N, C, H, W).

    A dense map keeps its format (contiguous where it is both). Of the others, those whose channels
    are adjacent and whose pixels are at least C apart count as channels_last: that is what
    PyTorch's own elementwise operations return for them.
    """
    if x.is_contiguous():
        return torch.contiguous_format
    if torch._C._are_functorch_transforms_active() and torch._C._functorch.is_batchedtensor(x):
        return torch.contiguous_format  # vmap does not tell
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    _, c, h, w = x.shape
    _, sc, sh, sw = x.stride()
    if c > 1 and sc == 1 and h * w > 1 and (h == 1 or sh >= c) and (w == 1 or sw >= c):
        return torch.channels_last
    return torch.contiguous_format
