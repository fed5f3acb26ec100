"""Operators that are differentiated by their formulas, to any order and under torch.func."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from chattn_cuda import reference

__all__ = ["Derivable", "is_last", "needs_formula", "pull_back"]


def needs_formula(one: Tensor | None, two: Tensor | None = None) -> bool:
    """Whether the gradients that come in are for a formula.

    That is so where they may have tangents, and where they are several at once, of vmap or of
    is_grads_batched of torch.autograd.grad: an operator would run once for each.
    """
    if forward_ad._current_level >= 0:
        return True
    return (one is not None and _is_batched(one)) or (two is not None and _is_batched(two))


def is_last(one: Tensor | None, two: Tensor | None = None) -> bool:
    """Whether a backward gives what its operator does: nobody asks for derivatives of that."""
    return not torch.is_grad_enabled() and not needs_formula(one, two)


def _is_batched(t: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(t) or functorch.is_batchedtensor(t)


@dataclass(frozen=True)
class Derivable:
    """An operator with its formula; call it, gradients that come in among the first two.

    Attributes:
        operator: ``operator(*args)`` returns a tuple of tensors.
        formula: The same in plain PyTorch, with derivatives.
        variables: How many of the arguments, from the first, the formula reads; the tensors among
            them are differentiated. In place of other tensors it gets None.
    """

    operator: Callable[..., tuple[Tensor, ...]]
    formula: Callable[..., tuple[Tensor, ...]]
    variables: int

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """The operator's results, which autograd and torch.func can differentiate."""
        if needs_formula(*args[:2]):
            return self.formula(*args)
        if not torch.is_grad_enabled():
            return self.operator(*args)
        if torch._C._are_functorch_transforms_active():
            return _Transformable.apply(self, *args)
        return _Plain.apply(self, *args)


class _Plain(torch.autograd.Function):
    """``forward(ctx, ...)`` in the old style costs a third of one with ``setup_context``."""

    @staticmethod
    def forward(ctx: Any, call: Derivable, *args: Any) -> tuple[Tensor, ...]:
        _save(ctx, call, args)
        return call.operator(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _backward(ctx, grads)


class _Transformable(torch.autograd.Function):
    @staticmethod
    def forward(call: Derivable, *args: Any) -> tuple[Tensor, ...]:
        return call.operator(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _save(ctx, inputs[0], inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _backward(ctx, grads)


def _save(ctx: Any, call: Derivable, args: Sequence[Any]) -> None:
    ctx.formula, ctx.others = call.formula, [None if isinstance(a, Tensor) else a for a in args]
    ctx.at = [i for i in range(call.variables) if isinstance(args[i], Tensor)]
    ctx.save_for_backward(*(args[i] for i in ctx.at))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grads: Sequence[Any]) -> tuple[Any, ...]:
    args = list(ctx.others)
    for i, t in zip(ctx.at, ctx.saved_tensors, strict=True):
        args[i] = t
    return (None, *pull_back(ctx.formula, args, grads))


def pull_back(
    formula: Callable[..., Sequence[Tensor]], args: Sequence[Any], grads: Sequence[Any]
) -> list[Any]:
    """The gradients of the tensors among ``args``, from those of the formula's results."""
    at = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    wanted = [i for i, g in enumerate(grads) if g is not None]
    result: list[Any] = [None] * len(args)
    if not wanted:
        return result

    def of_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = list(args)
        for i, t in zip(at, tensors, strict=True):
            given[i] = t
        values = formula(*given)
        return tuple(values[i] for i in wanted)

    with reference.no_autocast(grads[wanted[0]].device.type):
        _, pull, *_ = torch.func.vjp(of_tensors, *(args[i] for i in at))
        pulled = pull(tuple(grads[i] for i in wanted))
    for i, g in zip(at, pulled, strict=True):
        result[i] = g
    return result
