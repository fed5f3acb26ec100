"""The usual network between the passes of a selective kernel, with its derivatives.

``logits = w_select @ act(norm(w_reduce @ pooled + b_reduce)) + b_select`` on (N, C) numbers. It
costs little, so what counts are the calls: the derivatives are written out, and the whole block
becomes one node of the graph (`sk.attend`). Networks of other kinds are called as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.sk.grouped import (
    from_branches,
    input_gradient,
    linear,
    to_branches,
    weight_gradient,
)

__all__ = ["HiddenNorm", "Network", "Saved"]


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors)


Saved = tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]
"""Hidden values before the norm, those behind the activation, and the norm's two statistics."""


@dataclass(slots=True)
class HiddenNorm:
    """A batch norm of the hidden values; its numbers have the maps' type or that of accumulators.

    Attributes:
        weight: (d,) or None.
        bias: (d,) or None.
        running_mean: (d,), or None where there are none, or none to be updated.
        running_var: As running_mean.
        updates: Counts the updates of the running statistics; None where there are none.
        of_batch: Whether it normalises by the statistics of the batch, and updates the others.
        momentum: Of the update.
        eps: Added to the variance.
        copied: The running statistics themselves, where those are copies of another type.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    updates: Tensor | None
    of_batch: bool
    momentum: float
    eps: float
    copied: tuple[Tensor, Tensor] | None = None


@dataclass(slots=True)
class Network:
    """Call it with the mean (N, C) for logits (N, M, C).

    A layer's numbers have the maps' type or that of accumulators; a norm's, too.

    Attributes:
        branches: M.
        w_reduce: (d, C / cardinality) or (d, C / cardinality, 1, 1).
        b_reduce: (d,) or None.
        w_select: (M * C, d / cardinality) or (M * C, d / cardinality, 1, 1).
        b_select: (M * C,) or None.
        norm: Of the hidden values, or None.
        relu: Whether the activation is ReLU; otherwise there is none.
        cardinality: Groups of both layers. The rows of w_select are those of the first group first,
            in each of them those of the first branch.
    """

    branches: int
    w_reduce: Tensor
    b_reduce: Tensor | None
    w_select: Tensor
    b_select: Tensor | None
    norm: HiddenNorm | None = None
    relu: bool = True
    cardinality: int = 1

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What may have a gradient, in the order of `formula`'s and `gradients`' arguments."""
        norm = self.norm
        affine = (None, None) if norm is None else (norm.weight, norm.bias)
        return self.w_reduce, self.b_reduce, *affine, self.w_select, self.b_select

    def in_type(self, dtype: torch.dtype) -> Network:
        """With all numbers of type ``dtype``, differentiably, as the methods below take them."""
        w1, b1, weight, bias, w2, b2 = _cast(dtype, *self.tensors)
        assert w1 is not None and w2 is not None
        norm = self.norm
        if norm is not None:
            mean, var = _cast(dtype, norm.running_mean, norm.running_var)
            copied = None
            if norm.of_batch and mean is not norm.running_mean:
                assert norm.running_mean is not None and norm.running_var is not None
                copied = norm.running_mean, norm.running_var
            norm = HiddenNorm(
                weight, bias, mean, var, norm.updates, norm.of_batch, norm.momentum, norm.eps,
                copied,
            )  # fmt: skip
        return Network(self.branches, w1, b1, w2, b2, norm, self.relu, self.cardinality)

    def with_statistics_kept(self) -> Network:
        """With copies of the running statistics by which it normalises.

        A later call in training changes them before the backward: eager PyTorch does not count that
        as a change, and goes on.
        """
        norm = self.norm
        if norm is None or norm.of_batch:
            return self
        assert norm.running_mean is not None and norm.running_var is not None
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        return replace(self, norm=replace(norm, running_mean=mean, running_var=var))

    def __call__(self, pooled: Tensor) -> Tensor:
        """The logits, differentiable; updates the running statistics."""
        return self.in_type(pooled.dtype)._call(pooled)

    def _call(self, pooled: Tensor) -> Tensor:
        norm = self.norm
        running = (None, None) if norm is None else (norm.running_mean, norm.running_var)
        z = self._by_torch(pooled, self.tensors, *running)
        self._count_update()
        return z

    def formula(self, pooled: Tensor, *tensors: Tensor | None) -> Tensor:
        """The logits by other ``tensors``, differentiable; changes nothing."""
        norm = self.norm
        mean = var = None
        if norm is not None and not norm.of_batch:
            mean, var = _cast(pooled.dtype, norm.running_mean, norm.running_var)
        return self._by_torch(pooled, _cast(pooled.dtype, *tensors), mean, var)

    def _by_torch(
        self, pooled: Tensor, tensors: tuple[Tensor | None, ...], mean: Tensor | None,
        var: Tensor | None,
    ) -> Tensor:  # fmt: skip
        w1, b1, weight, bias, w2, b2 = tensors
        assert w1 is not None and w2 is not None
        with reference.no_autocast(pooled.device.type):
            h = linear(pooled, w1, b1, self.cardinality)
            if self.norm is not None:
                n = self.norm
                h = F.batch_norm(h, mean, var, weight, bias, n.of_batch, n.momentum, n.eps)
            z = linear(F.relu(h) if self.relu else h, w2, b2, self.cardinality)
        return to_branches(z, self.branches, self.cardinality)

    def _count_update(self) -> None:
        """What follows an update of the running statistics, where they are to be updated."""
        norm = self.norm
        if norm is None:
            return
        if norm.updates is not None:
            norm.updates.add_(1)
        if norm.copied is not None:
            assert norm.running_mean is not None and norm.running_var is not None
            norm.copied[0].copy_(norm.running_mean)
            norm.copied[1].copy_(norm.running_var)

    def evaluate(self, pooled: Tensor) -> tuple[Tensor, Saved]:
        """The logits and what `gradients` needs of them, without a graph; else as `__call__`."""
        before = mean = deviation = None
        with reference.no_autocast(pooled.device.type):
            h = linear(pooled, self.w_reduce, self.b_reduce, self.cardinality)
            if self.norm is not None:
                n, before = self.norm, h
                h, mean, deviation = torch.native_batch_norm(
                    h, n.weight, n.bias, n.running_mean, n.running_var, n.of_batch, n.momentum,
                    n.eps,
                )  # fmt: skip
                if not n.of_batch:
                    mean, deviation = n.running_mean, n.running_var
            if self.relu:
                h.relu_()
            z = linear(h, self.w_select, self.b_select, self.cardinality)
        self._count_update()
        return to_branches(z, self.branches, self.cardinality), (before, h, mean, deviation)

    def gradients(
        self, dz: Tensor, pooled: Tensor, tensors: tuple[Tensor | None, ...], saved: Saved,
        needs: tuple[bool, ...],
    ) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
        """The gradient of the mean, and those of the ``tensors`` that ``needs`` lists."""
        w1, _, weight, _, w2, _ = tensors
        before, h, mean, deviation = saved
        assert w1 is not None and w2 is not None
        groups = self.cardinality
        dz = from_branches(dz, groups)
        dw2 = weight_gradient(dz, h, w2, groups) if needs[4] else None
        db2 = dz.sum(0) if needs[5] else None
        dh = input_gradient(dz, w2, groups)
        if self.relu:
            dh = torch.ops.aten.threshold_backward(dh, h, 0)
        dweight = dbias = None
        if self.norm is not None:
            n = self.norm
            # CUDA's kernel asks for statistics of the batch in eval mode, too, where empty ones do,
            # and gives the bias no gradient without a weight.
            statistics: tuple[Tensor | None, ...] = (None, None, mean, deviation)
            if not n.of_batch:
                statistics = (mean, deviation, dh.new_empty(0), dh.new_empty(0))
            if weight is None and needs[3]:
                weight = dh.new_ones(dh.shape[1])
            dh, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
                dh, before, weight, *statistics, n.of_batch, n.eps, [True, *needs[2:4]]
            )
        dw1 = weight_gradient(dh, pooled, w1, groups) if needs[0] else None
        db1 = None
        if needs[1]:  # the batch's mean takes a bias away: zero, and not the rounding of a sum
            cancelled = self.norm is not None and self.norm.of_batch
            db1 = dh.new_zeros(dh.shape[1]) if cancelled else dh.sum(0)
        return input_gradient(dh, w1, groups), [dw1, db1, dweight, dbias, dw2, db2]
