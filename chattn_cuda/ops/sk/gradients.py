"""The gradients of the selective kernel's operators, each by itself, for `torch.library`.

In a graph of others the branches' gradient is a sum of two maps, one from each operator. This
package's own functions of autograd write it at once (`carriers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from chattn_cuda.ops.derivable import pull_back
from chattn_cuda.ops.sk.operators import (
    Form,
    dot_formula,
    gradient_formula,
    gradient_of_branches,
    gradient_of_logits,
)

__all__ = ["gradients"]

Gradient = tuple[Callable[..., None], Callable[..., Any]]
"""``setup_context`` and ``backward``, as `torch.library.register_autograd` takes them."""


def gradients(namespace: str) -> dict[str, Gradient]:
    """By operator, those that have a derivative."""

    def backward_select(ctx: Any, dy: Tensor) -> Any:
        logits, *branches = ctx.saved_tensors
        of_branches, of_logits, *rest = ctx.needs_input_grad
        dx: Sequence[Any] = [None] * len(branches)
        if any(of_branches):
            dx = gradient_of_branches(namespace, ctx.form, None, dy, logits)
        dlogits = gradient_of_logits(namespace, 1, dy, logits, branches) if of_logits else None
        return (list(dx), dlogits, *(None for _ in rest))

    return {
        "sk_squeeze": (_setup_squeeze, _backward_squeeze),
        "sk_select": (_setup_select, backward_select),
        "sk_dot": (_setup_dot, _backward_dot),
        "sk_gradient": (_setup_gradient, _backward_gradient),
    }


def _refuse(prologue: Tensor | None) -> None:
    if prologue is not None:
        raise NotImplementedError(
            "a prologue has no derivative; chattn_cuda.functional.selective_kernel computes it "
            "first where gradients are recorded"
        )


def _setup_squeeze(ctx: Any, inputs: Any, output: Any) -> None:
    branches, prologue, *_ = inputs
    _refuse(prologue)
    ctx.size, ctx.dtype, ctx.count = branches[0].shape, branches[0].dtype, len(branches)


def _backward_squeeze(ctx: Any, dpooled: Tensor) -> Any:
    mean = dpooled / (ctx.size[2] * ctx.size[3])
    grad = mean.to(ctx.dtype)[:, :, None, None].expand(ctx.size)
    return ([grad] * ctx.count, *(None for _ in ctx.needs_input_grad[1:]))


def _setup_select(ctx: Any, inputs: Any, output: Any) -> None:
    branches, logits, prologue, *_ = inputs
    _refuse(prologue)
    ctx.form = Form.of(branches, 1)
    ctx.save_for_backward(logits, *branches)


def _setup_dot(ctx: Any, inputs: Any, output: Any) -> None:
    dy, logits, branches = inputs
    ctx.save_for_backward(dy, logits, *branches)


def _backward_dot(ctx: Any, ddlogits: Tensor) -> Any:
    def formula(*args: Tensor) -> tuple[Tensor]:
        return dot_formula(1, *args)

    dy, dlogits, *dbranches = pull_back(formula, ctx.saved_tensors, (ddlogits,))
    return dy, dlogits, dbranches


def _setup_gradient(ctx: Any, inputs: Any, output: Any) -> None:
    dy, logits, dpooled, channels_last, stacked = inputs
    ctx.form = Form(logits.shape[1], dy.shape, dy.dtype, channels_last, stacked)
    ctx.save_for_backward(dy, logits, *(() if dpooled is None else (dpooled,)))


def _backward_gradient(ctx: Any, grads: Sequence[Tensor]) -> Any:
    def formula(dy: Tensor, logits: Tensor, dpooled: Tensor | None = None) -> Any:
        return gradient_formula(ctx.form, dpooled, dy, logits)

    found = pull_back(formula, ctx.saved_tensors, grads)
    dy, dlogits, dpooled = (*found, None)[:3]
    return dy, dlogits, dpooled, None, None
