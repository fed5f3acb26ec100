"""A tail as one node of the graph."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda.ops.blocks import BLOCKS
from chattn_cuda.ops.calls import call_eager
from chattn_cuda.ops.derivable import Derivable, pull_back
from chattn_cuda.ops.saved import save, saved, unchanged_biases
from chattn_cuda.ops.tail.description import Tail
from chattn_cuda.reference import accumulation_dtype

__all__ = ["apply_tail"]


def apply_tail(
    namespace: str, tail: Tail, x: Tensor, residual: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, *of_gate: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Run a tail with its gradients.

    Args:
        namespace: The backend's operator namespace.
        tail: What it computes.
        x: The map (N, C, H, W) in front of the norm.
        residual: A map like x, or None.
        weight: (C,) of the norm, or None.
        bias: As weight.
        *of_gate: What the gate's block takes beside its map.

    Returns:
        y, and of a norm by batch statistics their mean and biased variance (C,), else None.
    """
    tensors = (x, residual, weight, bias, *of_gate)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Tail.apply(namespace, tail, *tensors)
    y, numbers, variance, *_ = _forward(namespace, tail, tensors, False)
    return y, *_statistics(tail, numbers, variance)


def _statistics(tail: Tail, numbers: Tensor, variance: Tensor) -> tuple[Any, Any]:
    return (numbers[2], variance) if tail.norm.of_batch else (None, None)


def _forward(
    namespace: str, tail: Tail, tensors: Sequence[Any], differentiable: bool
) -> tuple[Any, ...]:
    """Y, then what the backward reads: the norm's numbers, their variance, means, mask, gate."""
    x, residual, weight, bias, *of_gate = tensors
    norm, gate = tail.norm, tail.gate
    numbers, variance, means, pooled = call_eager(
        namespace, "tail_squeeze", x, weight, bias, norm.mean, norm.var, norm.eps, *tail.inner,
        gate is not None,
    )  # fmt: skip
    kept: Sequence[Any] = ()
    factor = tail.factors
    if gate is not None:
        weights = _in_accumulators(of_gate, x.dtype)
        _, *kept = call_eager(
            namespace, f"{gate.block}_forward", pooled[:, :, None, None], *weights, *gate.constants
        )
        factor = kept[-1] if factor is None else kept[-1] * factor
    elif factor is not None:
        factor = factor.expand(x.shape[:2]).contiguous()
    need_mask = differentiable and residual is not None and tail.is_masked
    y, mask = call_eager(
        namespace, "tail_apply", x, residual, numbers, factor, *tail.functions, need_mask
    )
    return y, numbers, variance, means, pooled, mask if need_mask else None, factor, *kept


def _in_accumulators(tensors: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    acc = accumulation_dtype(dtype)
    return [t if t is None or t.dtype == acc else t.to(acc) for t in tensors]


class _Tail(torch.autograd.Function):
    """(y, mean, variance); the statistics have no gradient."""

    @staticmethod
    def forward(ctx: Any, namespace: str, tail: Tail, *tensors: Any) -> Any:
        y, numbers, variance, *rest = _forward(namespace, tail, tensors, True)
        x, residual, weight, bias, *of_gate = tensors
        if tail.is_masked or tail.act[0] == 0:  # the mask tells, or nobody asks
            residual = None
        biases = [bias]
        for i in () if tail.gate is None else BLOCKS[tail.gate.block].biases:
            biases.append(of_gate[i - 1])
            of_gate[i - 1] = None
        save(ctx, (x, residual, weight, *of_gate, numbers, *rest), biases)
        ctx.namespace, ctx.tail = namespace, tail
        ctx.set_materialize_grads(False)
        statistics = _statistics(tail, numbers, variance)
        if statistics[0] is not None:
            ctx.mark_non_differentiable(*statistics)
        return y, *statistics

    @staticmethod
    def backward(ctx: Any, dy: Any, *_: Any) -> Any:
        needs = ctx.needs_input_grad[2:]
        if dy is None:
            return (None, None, *(None for _ in needs))
        kept, of_what = saved(ctx), (ctx.namespace, ctx.tail, needs)
        if not torch.is_grad_enabled():
            return (None, None, *_gradients(*of_what, dy, *kept))
        # With derivatives of its own: those of the formulas.
        count = len(needs) - 1
        tensors, rest = list(kept[:count]), kept[count:]
        bias, *others = unchanged_biases(ctx)
        tensors.insert(3, bias)
        for i, b in zip(_biases(ctx.tail), others, strict=True):
            tensors[i] = b
        formula = functools.partial(
            ctx.tail.formula, rest[0], _slope(*of_what[:2], tensors[0], *rest)
        )
        derivable = Derivable(
            functools.partial(_gradients_of_given, *of_what),
            functools.partial(_derivatives, formula, needs),
            1 + len(needs),
        )
        return (None, None, *derivable(dy, *tensors, *rest))


def _biases(tail: Tail) -> list[int]:
    """Places of the gate's biases among the tensors."""
    return [] if tail.gate is None else [3 + i for i in BLOCKS[tail.gate.block].biases]


def _gradients_of_given(
    namespace: str, tail: Tail, needs: Sequence[bool], dy: Tensor, *args: Any
) -> tuple[Any, ...]:
    """`_gradients` of all tensors that the forward took."""
    kept = list(args)
    for i in _biases(tail):
        kept[i] = None
    del kept[3]
    return tuple(_gradients(namespace, tail, needs, dy, *kept))


def _derivatives(formula: Any, needs: Sequence[bool], dy: Tensor, *args: Any) -> tuple[Any, ...]:
    """What `_gradients` returns, by differentiating the formula."""
    given = list(args[: len(needs)])
    if needs[1] and given[1] is None:  # of which nobody needs the values
        given[1] = torch.zeros_like(given[0])
    found = pull_back(formula, given, [dy])
    return tuple(g if needed else None for g, needed in zip(found, needs, strict=True))


def _slope(
    namespace: str, tail: Tail, x: Tensor, numbers: Tensor, means: Any, pooled: Any, mask: Any,
    factor: Any, *of_gate: Any,
) -> Tensor | None:  # fmt: skip
    """The derivative of the activation as a map, where a mask tells it."""
    if mask is None:
        return None
    with torch.no_grad():
        maps = torch.ones_like(x), x, None, mask, numbers, factor
        of_norm: tuple[None, ...] = (None,) * 4
        wanted = False, False, True, False
        return call_eager(namespace, "tail_gradient", *maps, *of_norm, *tail.functions, *wanted)[1]


def _gradients(
    namespace: str, tail: Tail, needs: Sequence[bool], dy: Tensor, x: Tensor, residual: Any,
    weight: Any, *kept: Any,
) -> list[Any]:  # fmt: skip
    """Of x, the residual, the norm's weight and bias, and the gate's tensors."""
    count = len(needs) - 4
    weights, (numbers, means, pooled, mask, factor, *of_gate) = kept[:count], kept[count:]
    need_dx, need_dresidual, need_dweight, need_dbias, *need_gate = needs
    of_norm, gate = need_dweight or need_dbias, tail.gate
    of_gate_needed = gate is not None and (need_dx or of_norm or any(need_gate))
    grads: list[Any] = [None] * len(needs)
    if tail.act[0] == 0 and need_dresidual:
        grads[1] = dy
    maps = dy, x, residual, mask, numbers, factor
    sums = dpooled = dgate = None
    if of_gate_needed or of_norm or (tail.norm.of_batch and need_dx):
        sums, dgate = call_eager(namespace, "tail_reduce", *maps, *tail.functions, of_gate_needed)
    if of_gate_needed:
        assert gate is not None and dgate is not None
        spec = BLOCKS[gate.block]
        if tail.factors is not None:
            dgate = dgate * tail.factors
        as_map = pooled[:, :, None, None]
        read = [w for i, w in enumerate(weights, 1) if i not in spec.biases]
        dmap, *found = call_eager(
            namespace, f"{gate.block}_backward", torch.zeros_like(as_map), dgate, as_map, *of_gate,
            *_in_accumulators(read, x.dtype), *gate.constants, need_dx or of_norm, any(need_gate),
        )  # fmt: skip
        if need_dx or of_norm:
            dpooled = dmap[:, :, 0, 0]
        for i, (needed, g) in enumerate(zip(need_gate, found, strict=True), 4):
            if needed:
                grads[i] = g
    dresidual = need_dresidual and tail.act[0] != 0
    if need_dx or dresidual or of_norm:
        dx, of_residual, dweight, dbias = call_eager(
            namespace, "tail_gradient", *maps, sums, means if means.numel() else None, dpooled,
            weight, *tail.functions, tail.norm.of_batch, need_dx, dresidual, of_norm,
        )  # fmt: skip
        grads[0] = dx if need_dx else None
        if dresidual:
            grads[1] = of_residual
        grads[2] = dweight if need_dweight else None
        grads[3] = dbias if need_dbias else None
    return grads
