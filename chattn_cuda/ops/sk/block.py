"""A selective kernel with a `Network` as one node of the graph."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.calls import call_eager
from chattn_cuda.ops.derivable import is_last
from chattn_cuda.ops.saved import save, saved, unchanged_biases
from chattn_cuda.ops.sk.network import Network
from chattn_cuda.ops.sk.operators import (
    Form,
    derived,
    dot_flat,
    gradient_flat,
    split,
)
from chattn_cuda.ops.sk.prologue import RELU, Prologue

__all__ = ["SelectiveKernelFunction", "evaluate", "is_whole"]


class SelectiveKernelFunction(torch.autograd.Function):
    """(y, logits) of the whole block with a `Network`.

    First derivatives do not read the biases, which may therefore change before the backward.
    """

    @staticmethod
    def forward(ctx: Any, namespace: str, slices: int, network: Network, *args: Any) -> Any:
        maps, network = args[_TENSORS:], network.with_statistics_kept()
        y, logits, *rest = evaluate(namespace, slices, network, maps, None)
        w1, b1, weight, bias, w2, b2 = args[:_TENSORS]
        save(ctx, (w1, None, weight, None, w2, None, *maps, *rest, logits), (b1, bias, b2))
        ctx.namespace, ctx.slices, ctx.network = namespace, slices, network
        ctx.set_materialize_grads(False)
        return y, logits

    @staticmethod
    def backward(ctx: Any, dy: Any, dlogits: Any) -> Any:
        needs = ctx.needs_input_grad[3:]
        if dy is None and dlogits is None:
            return (None,) * (3 + len(needs))
        namespace, slices, network = ctx.namespace, ctx.slices, ctx.network
        if is_last(dy, dlogits):
            grads = _gradients(namespace, slices, network, needs, dy, dlogits, *saved(ctx))
            return (None, None, None, *grads)
        kept = list(saved(ctx))
        kept[1:_TENSORS:2] = unchanged_biases(ctx)
        operator = functools.partial(_gradients, namespace, slices, network, needs)
        formula = functools.partial(_gradients_by_formula, slices, network, needs)
        with reference.no_autocast(kept[0].device.type):
            grads = derived(operator, formula, dy, dlogits, *kept, variables=2 + len(needs))
        return (None, None, None, *grads)


_TENSORS = 6  # of a Network: every other one is a bias


@functools.cache
def is_whole(namespace: str, cardinality: int) -> bool:
    """Whether one operator of the backend runs the passes and such a network in between."""
    return cardinality == 1 and hasattr(getattr(torch.ops, namespace), "sk_forward")


def evaluate(
    namespace: str,
    slices: int,
    network: Network,
    maps: Sequence[Tensor],
    prologue: Prologue | None,
) -> tuple[Any, ...]:
    """Y, the logits, and what the gradients need; updates the running statistics."""
    branches = split(maps, slices) if slices > 1 else list(maps)
    if not is_whole(namespace, network.cardinality):
        numbers = () if prologue is None else prologue.arguments(branches[0].dtype)
        pooled = call_eager(namespace, "sk_squeeze", branches, *numbers)
        z, rest = network.evaluate(pooled)
        return call_eager(namespace, "sk_select", branches, z, *numbers), z, pooled, *rest
    norm = network.norm
    mean = var = weight = bias = None
    running: list[Tensor] = []
    of_batch, momentum, eps = False, 0.0, 0.0
    if norm is not None:
        weight, bias, of_batch, eps = norm.weight, norm.bias, norm.of_batch, norm.eps
        if of_batch:
            momentum = norm.momentum
            for t in (norm.running_mean, norm.running_var, norm.updates):
                if t is not None:
                    running.append(t)
        else:
            mean, var = norm.running_mean, norm.running_var
    before: tuple[list[Tensor], float] = [], 0.0
    behind = RELU
    if prologue is not None:
        before, behind = prologue.tensors(branches[0].dtype), prologue.act
    y, pooled, hidden, logits = call_eager(
        namespace, "sk_forward", branches, network.w_reduce, network.b_reduce, weight, bias,
        network.w_select, network.b_select, mean, var, running, of_batch, momentum, eps,
        network.relu, *before, *behind,
    )  # fmt: skip
    if running and not running[0].is_inference():  # a kernel does not count its changes
        torch.autograd.graph.increment_version(running)
    return y, logits, pooled, hidden, mean, var


def _gradients(
    namespace: str, slices: int, network: Network, needs: Sequence[bool], dy: Any, dlogits: Any,
    *args: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """The gradients of the network's tensors and of the maps that are needed."""
    if is_whole(namespace, network.cardinality):
        return _whole_gradients(namespace, slices, network, needs, dy, dlogits, *args)
    tensors, maps = args[:_TENSORS], args[_TENSORS : len(needs)]
    pooled, *saved, logits = args[len(needs) :]
    dz = dlogits
    with reference.no_autocast(logits.device.type):
        if dy is not None:
            (dz,) = dot_flat(namespace, slices, dy, logits, *maps)
            dz = dz if dlogits is None else dz + dlogits
        dpooled, grads = network.gradients(
            dz, pooled, tensors, tuple(saved), tuple(needs[:_TENSORS])
        )
    dx: Sequence[Any] = [None] * len(maps)
    if any(needs[_TENSORS:]):
        dx = gradient_flat(namespace, Form.of(maps, slices), dpooled, dy, logits)
    return tuple(g if n else None for g, n in zip((*grads, *dx), needs, strict=True))


def _whole_gradients(
    namespace: str, slices: int, network: Network, needs: Sequence[bool], dy: Any, dlogits: Any,
    w1: Tensor, _1: None, weight: Any, _2: None, w2: Tensor, _3: None, *args: Any,
) -> tuple[Any, ...]:  # fmt: skip
    *maps, pooled, hidden, mean, var, logits = args
    if dy is None:  # only the logits were used
        dy = torch.zeros_like(split(maps, slices)[0])
    wanted = 0
    for i, needed in enumerate(needs):
        if needed:
            wanted |= 1 << min(i, _TENSORS)  # the branches' have one bit
    norm = network.norm
    of_batch, eps = (False, 0.0) if norm is None else (norm.of_batch, norm.eps)
    branches, stacked = maps, False
    if slices > 1:
        branches, stacked = split(maps, slices), Form.of(maps, slices).aligned
    dx, found = call_eager(
        namespace, "sk_backward", dy, dlogits, branches, w1, weight, w2, mean, var, of_batch, eps,
        network.relu, pooled, hidden, logits, stacked, wanted,
    )  # fmt: skip
    if slices > 1 and dx and not stacked:
        dx = [torch.cat(dx, 1)]
    grads: list[Any] = [None] * len(needs)
    given = iter(found)
    for i, needed in enumerate(needs):
        if needed:
            grads[i] = next(given) if i < _TENSORS else dx[i - _TENSORS]
    return tuple(grads)


def _gradients_by_formula(
    slices: int, network: Network, needs: Sequence[bool], dy: Any, dlogits: Any, *args: Any
) -> tuple[Any, ...]:
    """The same by differentiating the formulas."""
    wanted = [i for i, needed in enumerate(needs) if needed]
    args = args[: len(needs)]

    def formulas(*values: Tensor) -> tuple[Tensor, Tensor]:
        given = list(args)
        for i, value in zip(wanted, values, strict=True):
            given[i] = value
        branches = split(given[_TENSORS:], slices)
        z = network.formula(reference.squeeze_branches(branches), *given[:_TENSORS])
        return reference.select_branches(branches, z)[0], z

    (y, z), pull, *_ = torch.func.vjp(formulas, *(args[i] for i in wanted))
    dy = torch.zeros_like(y) if dy is None else dy
    dlogits = torch.zeros_like(z) if dlogits is None else dlogits
    grads: list[Any] = [None] * len(needs)
    for i, g in zip(wanted, pull((dy, dlogits)), strict=True):
        grads[i] = g
    return tuple(grads)
