"""A selective kernel as two nodes of the graph, with any network between them.

`Squeeze` hands `Select` two *carriers*: tensors of one element, expanded to the shapes of y and of
the logits. To autograd they are what y is made of. The backward of `Select` returns dy and the
logits as the carriers' gradients, which brings both to the backward of `Squeeze`; that one runs
when dpooled is known, and writes the gradient of every branch in one pass. Nothing is shared on the
side, so graphs may be retained, compiled and differentiated again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from chattn_cuda.ops.sk.operators import (
    Form,
    derived,
    dot_flat,
    dot_formula,
    gradient_flat,
    gradient_formula,
    sk_operator,
    split,
)

__all__ = ["Mean", "Select", "Squeeze"]


class Mean(torch.autograd.Function):
    """The squeeze without a select behind it."""

    @staticmethod
    def forward(ctx: Any, namespace: str, *branches: Tensor) -> Tensor:
        ctx.size, ctx.dtype, ctx.count = branches[0].shape, branches[0].dtype, len(branches)
        return sk_operator(namespace, "squeeze")(list(branches))

    @staticmethod
    def backward(ctx: Any, dpooled: Tensor) -> tuple[Any, ...]:
        mean = dpooled / (ctx.size[2] * ctx.size[3])
        grad = mean.to(ctx.dtype)[:, :, None, None].expand(ctx.size)
        return (None, *([grad] * ctx.count))


class Squeeze(torch.autograd.Function):
    """(pooled, carrier of dy, carrier of the logits); its backward writes the maps' gradients."""

    @staticmethod
    def forward(ctx: Any, namespace: str, slices: int, *maps: Tensor) -> Any:
        pooled = sk_operator(namespace, "squeeze")(split(maps, slices))
        ctx.namespace, ctx.form = namespace, Form.of(maps, slices)
        ctx.set_materialize_grads(False)
        n, c = pooled.shape
        of_logits = pooled.new_zeros(()).expand(n, ctx.form.count, c)
        return pooled, maps[0].new_zeros(()).expand(ctx.form.size), of_logits

    @staticmethod
    def backward(ctx: Any, dpooled: Any, dy: Any, logits: Any) -> Any:
        needs = ctx.needs_input_grad[2:]
        if dpooled is None and dy is None:
            return (None, None, *(None for _ in needs))
        operator = functools.partial(gradient_flat, ctx.namespace, ctx.form)
        formula = functools.partial(gradient_formula, ctx.form)
        grads = derived(operator, formula, dpooled, dy, logits)
        return (None, None, *(g if n else None for g, n in zip(grads, needs, strict=True)))


class Select(torch.autograd.Function):
    """y; its backward hands dy and the logits to the carriers."""

    @staticmethod
    def forward(
        ctx: Any, namespace: str, slices: int, logits: Tensor, of_dy: Any, of_gate: Any, *maps: Any
    ) -> Any:
        ctx.save_for_backward(logits, *maps)
        ctx.namespace, ctx.slices, ctx.carried = namespace, slices, of_dy is not None
        return sk_operator(namespace, "select")(split(maps, slices), logits)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        logits, *maps = ctx.saved_tensors
        dlogits = None
        if ctx.needs_input_grad[2]:
            operator = functools.partial(dot_flat, ctx.namespace, ctx.slices)
            formula = functools.partial(dot_formula, ctx.slices)
            (dlogits,) = derived(operator, formula, dy, logits, *maps)
        carried = (dy, logits) if ctx.carried else (None, None)
        return (None, None, dlogits, *carried, *(None for _ in maps))
