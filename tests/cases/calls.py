"""A block's operators, called by themselves: on tensors whose numbers do not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chattn_cuda.reference import accumulation_dtype


class Call(NamedTuple):
    """An operator, by its name without the namespace, and all its arguments."""

    operator: str
    args: tuple[Any, ...]


class Calls(NamedTuple):
    """What a block calls in each direction."""

    forward: list[Call]
    backward: list[Call]


class Make:
    """Makes the tensors of calls.

    Attributes:
        dtype: Of maps.
        memory_format: Of maps.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        memory_format: torch.memory_format = torch.contiguous_format,
        *,
        weights: torch.dtype | None = None,
        at: Mapping[str, int] | None = None,
        device: str = "cpu",
        new: Callable[..., Tensor] = torch.empty,
    ) -> None:
        """Say what they are like.

        Args:
            dtype: As above.
            memory_format: As above.
            weights: Their type, if it is another one.
            at: By name, how many elements behind an aligned address a tensor starts.
            device: Where they are.
            new: ``new(size, dtype=dtype, device=device)``, the memory of one.
        """
        self.dtype, self.memory_format = dtype, memory_format
        self._weights, self._acc = weights or dtype, accumulation_dtype(dtype)
        self._at, self._device, self._new = at or {}, device, new

    def _tensor(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        at = self._at.get(name, 0)
        memory = self._new(like.numel() + at, dtype=dtype, device=self._device)
        return memory[at:].as_strided(like.shape, like.stride())

    def map(self, name: str, *shape: int) -> Tensor:
        like = torch.empty(shape, device="meta", memory_format=self.memory_format)
        return self._tensor(name, like, self.dtype)

    def weight(self, name: str, *shape: int) -> Tensor:
        return self._tensor(name, torch.empty(shape, device="meta"), self._weights)

    def sums(self, name: str, *shape: int) -> Tensor:
        """A tensor in the accumulation type."""
        return self._tensor(name, torch.empty(shape, device="meta"), self._acc)
