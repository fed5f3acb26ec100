"""A selective kernel with a `Network` as one node of the graph."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.sk.network import Network
from chattn_cuda.ops.sk.operators import (
    Form,
    batched,
    derived,
    dot_flat,
    gradient_flat,
    sk_operator,
    split,
)

__all__ = ["Block", "evaluate"]


class Block(torch.autograd.Function):
    """(y, logits) of the whole block with a `Network`.

    First derivatives do not read the biases, which may therefore change before the backward.
    """

    @staticmethod
    def forward(ctx: Any, namespace: str, slices: int, network: Network, *args: Any) -> Any:
        maps = args[_TENSORS:]
        y, logits, *saved = evaluate(namespace, slices, network, maps, None)
        w1, b1, weight, bias, w2, b2 = args[:_TENSORS]
        ctx.save_for_backward(w1, None, weight, None, w2, None, *maps, *saved, logits)
        ctx.namespace, ctx.slices, ctx.network = namespace, slices, network
        ctx.versions = _versions(b1, bias, b2)
        ctx.set_materialize_grads(False)
        return y, logits

    @staticmethod
    def backward(ctx: Any, dy: Any, dlogits: Any) -> Any:
        needs = ctx.needs_input_grad[3:]
        if dy is None and dlogits is None:
            return (None,) * (3 + len(needs))
        call = functools.partial(_gradients, ctx.namespace, ctx.slices, ctx.network, needs)
        formula = functools.partial(_gradients_by_formula, ctx.slices, ctx.network, needs)
        saved = list(ctx.saved_tensors)
        if torch.is_grad_enabled() or batched(dy, dlogits):  # the formulas do read them
            saved[1:_TENSORS:2] = biases = ctx.network.tensors[1::2]
            if _versions(*biases) != ctx.versions:
                raise RuntimeError("a bias was changed in place, and this backward needs its value")
        with reference.no_autocast(saved[0].device.type):
            grads = derived(call, formula, dy, dlogits, *saved, variables=2 + len(needs))
        return (None, None, None, *grads)


_TENSORS = 6  # of a Network: every other one is a bias


def _versions(*tensors: Tensor | None) -> list[int]:
    return [-1 if t is None else t._version for t in tensors]


def evaluate(
    namespace: str, slices: int, network: Network, maps: Sequence[Tensor], prologue: Any
) -> tuple[Any, ...]:
    """Y, the logits, the mean and the network's `Saved`; updates the running statistics."""
    branches = split(maps, slices)
    if _is_whole(namespace, maps):
        return _evaluate_whole(namespace, network, branches, prologue)
    pooled = sk_operator(namespace, "squeeze")(branches, prologue)
    logits, saved = network.evaluate(pooled)
    return sk_operator(namespace, "select")(branches, logits, prologue), logits, pooled, *saved


def _is_whole(namespace: str, maps: Sequence[Tensor]) -> bool:
    """Whether one operator runs the passes and the network in between."""
    return namespace == "chattn_cuda" and maps[0].device.type == "cpu"


def _evaluate_whole(
    namespace: str, network: Network, branches: list[Tensor], prologue: Any
) -> tuple[Any, ...]:
    norm = network.norm
    settings: tuple[Any, ...] = (None, None, False, 0.0, 0.0)
    if norm is not None:
        settings = (norm.running_mean, norm.running_var, norm.of_batch, norm.momentum, norm.eps)
        network.count_update()
    y, pooled, hidden, activated, mean, var, logits = sk_operator(namespace, "forward")(
        branches, *network.tensors, *settings, network.relu, prologue
    )
    if norm is None:
        return y, logits, pooled, None, activated, None, None
    if not norm.of_batch:
        mean, var = norm.running_mean, norm.running_var
    elif norm.running_mean is not None and not norm.running_mean.is_inference():
        assert norm.running_var is not None  # an operator's kernel does not count its changes
        torch.autograd.graph.increment_version((norm.running_mean, norm.running_var))
    return y, logits, pooled, hidden, activated, mean, var


def _gradients(
    namespace: str, slices: int, network: Network, needs: Sequence[bool], dy: Any, dlogits: Any,
    *args: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """The gradients of the network's tensors and of the maps that are needed."""
    tensors, maps = args[:_TENSORS], args[_TENSORS : len(needs)]
    saved = args[len(needs) :]
    of_network, of_maps = tuple(needs[:_TENSORS]), any(needs[_TENSORS:])
    way = _whole_gradients if _is_whole(namespace, maps) else _gradients_in_parts
    grads, dx = way(
        namespace, slices, network, of_network, of_maps, dy, dlogits, tensors, maps, *saved
    )
    dx = dx if of_maps else [None] * len(maps)
    return tuple(g if n else None for g, n in zip((*grads, *dx), needs, strict=True))


def _whole_gradients(
    namespace: str, slices: int, network: Network, of_network: tuple[bool, ...], of_maps: bool,
    dy: Any, dlogits: Any, tensors: Any, maps: Any, pooled: Tensor, hidden: Any, activated: Any,
    mean: Any, var: Any, logits: Tensor,
) -> tuple[Sequence[Any], Sequence[Any]]:  # fmt: skip
    if dy is None:  # only the logits were used
        dy = torch.zeros_like(split(maps, slices)[0])
    if hidden is None:
        hidden = pooled.new_empty((0,))
    w1, _, weight, _, w2, _ = tensors
    norm = network.norm
    settings = (False, 0.0) if norm is None else (norm.of_batch, norm.eps)
    stacked = slices > 1 and Form.of(maps, slices).aligned
    dx, *grads = sk_operator(namespace, "backward")(
        dy, dlogits, split(maps, slices), w1, weight, w2, mean, var, *settings, network.relu,
        pooled, hidden, activated, logits, stacked, of_maps, any(of_network),
    )  # fmt: skip
    return grads, [torch.cat(dx, 1)] if of_maps and slices > 1 and not stacked else dx


def _gradients_in_parts(
    namespace: str, slices: int, network: Network, of_network: tuple[bool, ...], of_maps: bool,
    dy: Any, dlogits: Any, tensors: Any, maps: Any, pooled: Tensor, *rest: Any,
) -> tuple[Sequence[Any], Sequence[Any]]:  # fmt: skip
    *saved, logits = rest
    dz = dlogits
    if dy is not None:
        (dz,) = dot_flat(namespace, slices, dy, logits, *maps)
        dz = dz if dlogits is None else dz + dlogits
    dpooled, grads = network.gradients(dz, pooled, tensors, tuple(saved), of_network)
    if not of_maps:
        return grads, []
    return grads, gradient_flat(namespace, Form.of(maps, slices), dpooled, dy, logits)


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
