"""A batch norm by the statistics of several processes, as torch.nn.SyncBatchNorm has it.

A tail exchanges what that layer exchanges: forward, the mean and the inverse deviation of each
channel and a count; backward, the two sums that tell what all positions of a channel lose. Other
processes may run the layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from chattn_cuda.ops.calls import call_eager
from chattn_cuda.reference import accumulation_dtype

__all__ = ["Together", "own_sums"]


class Together:
    """The exchange of one forward, and of the backward behind it, with the others of a group."""

    def __init__(self, group: Any) -> None:
        """``group``: a process group of torch.distributed, of more than one process."""
        self.group = group
        self.count = torch.empty(())  # of positions, in all processes

    def squeeze(
        self, namespace: str, tail: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `tail_squeeze` returns, by the statistics of all; running ones follow those.

        A process without samples takes part, too.
        """
        norm, pools, plain = tail.norm, tail.gate is not None, tail.inner[0] == 0
        n, c = x.shape[:2]
        own = x.new_zeros(2 * c + 1, dtype=accumulation_dtype(x.dtype))
        means = own.new_empty((n, c) if pools and plain else (0,))
        if n > 0:
            own_norm = None, None, None, None, (), 0.0, norm.eps, 0, 0.0, pools and plain
            numbers, _, means, _ = call_eager(namespace, "tail_squeeze", x, *own_norm)
            own[:-1] = numbers[2:].view(-1)
            own[-1] = x.numel() // c
        mean, variance = self._joined(own, norm.eps)
        given = mean.to(own.dtype), variance.to(own.dtype)
        numbers, _, _, pooled = call_eager(
            namespace, "tail_squeeze", x, weight, bias, *given, (), 0.0, norm.eps, *tail.inner,
            pools and not plain,
        )  # fmt: skip
        if pools and plain:
            pooled = (means - numbers[2]) * numbers[0]
            pooled = pooled if bias is None else pooled + bias
        self._let_follow(norm, mean, variance)
        return numbers, given[1], means, pooled

    def _joined(self, own: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Mean and biased variance in float64, by Chan's formula."""
        size = dist.get_world_size(self.group)
        if dist.get_backend(self.group) == "gloo":
            parts = [torch.empty_like(own) for _ in range(size)]
            dist.all_gather(parts, own, self.group)
            everything = torch.stack(parts)
        else:
            everything = own.new_empty((size, own.numel()))
            gather = getattr(dist, "all_gather_single", None)  # its name in later versions of torch
            (gather or dist.all_gather_into_tensor)(everything.view(-1), own, self.group)
        means, inverse, counts = everything.double().split((len(own) // 2,) * 2 + (1,), 1)
        self.count = counts.sum()
        share = counts / self.count
        mean = (share * means).sum(0)
        # Of a process without samples the inverse is 0.
        within = torch.where(counts > 0, inverse.square().reciprocal() - eps, 0.0).clamp_(min=0)
        return mean, (share * (within + (means - mean).square())).sum(0)

    def _let_follow(self, norm: Any, mean: Tensor, variance: Tensor) -> None:
        if not norm.running:
            return
        unbiased = variance * (self.count / (self.count - 1))
        for running, of_all in zip(norm.running, (mean, unbiased), strict=False):
            running.lerp_(of_all.to(running.dtype), norm.momentum)
        for updates in norm.running[2:]:
            updates.add_(1)

    def lost(self, own: Tensor, numbers: Tensor) -> Tensor:
        """What `tail_gradient` takes, from `own_sums` of every process."""
        total = own.to(numbers.dtype, copy=True)
        dist.all_reduce(total, group=self.group)
        total[1] *= numbers[3].square()
        return total * (numbers[0] / self.count)


def own_sums(
    tail: Any, x: Tensor, sums: Tensor, factor: Tensor | None, numbers: Tensor, means: Tensor,
    dpooled: Tensor | None,
) -> Tensor:  # fmt: skip
    """(2, C), float64: gradients of the norm's shift, and of its scale by x - mean.

    Args:
        tail: What is differentiated.
        x: Its map.
        sums: Those of `tail_reduce`.
        factor: (N, C), of the gate, or None.
        numbers: Of the norm.
        means: (N, C) of x, where nothing stands between the norm and a gate.
        dpooled: (N, C), the gradient of what the gate squeezes, or None.
    """
    plain = tail.inner[0] == 0
    parts = sums if plain else sums[:, 1:3]
    if factor is not None:
        parts = parts * factor[:, None]
    if dpooled is not None and plain:
        parts = parts + torch.stack((dpooled, dpooled * (means - numbers[2])), 1)
    elif dpooled is not None:
        parts = parts + sums[:, 3:] * (dpooled / (x.shape[2] * x.shape[3]))[:, None]
    return parts.sum(0, dtype=torch.float64)
