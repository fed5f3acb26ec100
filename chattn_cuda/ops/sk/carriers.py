"""A selective kernel as two nodes of the graph, with any network between them.

`Squeeze` hands `Select` two *carriers*: tensors of one element, expanded to the shapes of y and of
the logits. To autograd they are what y is made of. The backward of `Select` returns dy and the
logits as the carriers' gradients, which brings both to the backward of `Squeeze`; that one runs
when dpooled is known, and writes the gradient of every branch in one pass. Nothing is shared on the
side, so graphs may be retained, compiled and differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chattn_cuda.ops.calls import call
from chattn_cuda.ops.sk.operators import (
    Form,
    gradient_of_branches,
    gradient_of_logits,
    split,
)

__all__ = ["Select", "Squeeze"]


class Squeeze(torch.autograd.Function):
    """(pooled, carrier of dy, carrier of the logits); its backward writes the maps' gradients."""

    @staticmethod
    def forward(ctx: Any, namespace: str, slices: int, *maps: Tensor) -> Any:
        pooled = call(namespace, "sk_squeeze", split(maps, slices))
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
        grads = gradient_of_branches(ctx.namespace, ctx.form, dpooled, dy, logits)
        return (None, None, *(g if n else None for g, n in zip(grads, needs, strict=True)))


class Select(torch.autograd.Function):
    """y; its backward hands dy and the logits to the carriers."""

    @staticmethod
    def forward(
        ctx: Any, namespace: str, slices: int, logits: Tensor, of_dy: Any, of_gate: Any, *maps: Any
    ) -> Any:
        ctx.save_for_backward(logits, *maps)
        ctx.namespace, ctx.slices = namespace, slices
        return call(namespace, "sk_select", split(maps, slices), logits)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        logits, *maps = ctx.saved_tensors
        dlogits = None
        if ctx.needs_input_grad[2]:
            dlogits = gradient_of_logits(ctx.namespace, ctx.slices, dy, logits, maps)
        return (None, None, dlogits, dy, logits, *(None for _ in maps))
