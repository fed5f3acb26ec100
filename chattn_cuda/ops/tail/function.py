"""A tail as one node of the graph."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda.compiled import has_gradients
from chattn_cuda.ops.calls import call, call_eager
from chattn_cuda.ops.derivable import Derivable, is_last, pull_back
from chattn_cuda.ops.saved import save, saved, unchanged_biases
from chattn_cuda.ops.tail.description import Tail
from chattn_cuda.ops.tail.together import own_sums
from chattn_cuda.reference import accumulation_dtype

__all__ = ["apply_tail", "backward", "forward", "gradients", "save_forward"]


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
    if torch.compiler.is_compiling():
        y, numbers, variance, *_ = call(
            namespace, tail.operator("forward"), *tensors, tail.norm.mean, tail.norm.var,
            tail.factors, tail.norm.eps, *tail.constants,
        )  # fmt: skip
    elif has_gradients(tensors):
        return _Tail.apply(namespace, tail, *tensors)
    else:
        y, numbers, variance, *_ = forward(namespace, tail, tensors, need_mask=False)
    return y, *_statistics(tail, numbers, variance)


def _statistics(tail: Tail, numbers: Tensor, variance: Tensor) -> tuple[Any, Any]:
    return (numbers[2], variance) if tail.norm.of_batch else (None, None)


def forward(
    namespace: str, tail: Tail, tensors: Sequence[Any], need_mask: bool
) -> tuple[Tensor, ...]:
    """Y, the norm's numbers, their variance, means, pooled, what the gate's returns, and a mask."""
    x, residual, weight, bias, *of_gate = tensors
    norm, gate = tail.norm, tail.gate
    if norm.together is not None:
        squeezed = norm.together.squeeze(namespace, tail, x, weight, bias)
    else:
        squeezed = call_eager(
            namespace, "tail_squeeze", x, weight, bias, norm.mean, norm.var, norm.running,
            norm.momentum, norm.eps, *tail.inner, gate is not None,
        )  # fmt: skip
        changed = [t for t in norm.running if not t.is_inference()]
        if changed:  # a kernel does not count its changes
            torch.autograd.graph.increment_version(changed)
    numbers, variance, means, pooled = squeezed
    kept: Sequence[Any] = ()
    if gate is not None:
        weights = _in_accumulators(of_gate, x.dtype)
        _, *kept = call_eager(
            namespace, f"{gate.block}_forward", pooled[:, :, None, None], *weights, *gate.constants
        )
    factor = tail.factor(x, kept)
    y, mask = call_eager(
        namespace, "tail_apply", x, residual, numbers, factor, *tail.functions, need_mask
    )
    return y, numbers, variance, means, pooled, *kept, mask


def _in_accumulators(tensors: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    acc = accumulation_dtype(dtype)
    return [t if t is None or t.dtype == acc else t.to(acc) for t in tensors]


class _Tail(torch.autograd.Function):
    """(y, mean, variance); the statistics have no gradient."""

    @staticmethod
    def forward(ctx: Any, namespace: str, tail: Tail, *tensors: Any) -> Any:
        outputs = forward(namespace, tail, tensors, tail.is_masked(tensors[1]))
        save_forward(ctx, namespace, tail, tensors, outputs)
        statistics = _statistics(tail, *outputs[1:3])
        if statistics[0] is not None:
            ctx.mark_non_differentiable(*statistics)
        return outputs[0], *statistics

    @staticmethod
    def backward(ctx: Any, dy: Any, *_: Any) -> Any:
        needs = ctx.needs_input_grad[2:]
        if dy is None:
            return (None, None, *(None for _ in needs))
        return (None, None, *backward(ctx, gradients, ctx.tail, needs, dy, saved(ctx)))


def save_forward(
    ctx: Any, namespace: str, tail: Tail, tensors: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Keep what `backward` reads of the tensors and of what `forward` returned."""
    _, numbers, _, means, pooled, *of_gate, mask = outputs
    kept, is_masked = list(tensors), tail.is_masked(tensors[1])
    if is_masked or tail.act[0] == 0:  # the mask tells, or nobody asks
        kept[1] = None
    kept = [t for i, t in enumerate(kept) if i not in tail.biases]
    kept += numbers, means, pooled, *of_gate, mask if is_masked else None
    save(ctx, kept, [tensors[i] for i in tail.biases])
    ctx.namespace, ctx.tail = namespace, tail
    ctx.set_materialize_grads(tail.norm.together is not None)  # whose others wait for this one


def backward(
    ctx: Any, first: Any, tail: Tail, needs: Sequence[bool], dy: Tensor, kept: Sequence[Any]
) -> Sequence[Any]:
    """The gradients of the tensors, those that are needed.

    Args:
        ctx: Of `save_forward`.
        first: `gradients`, or an operator of the same arguments.
        tail: What is differentiated.
        needs: For each of the tensors, whether its gradient is needed.
        dy: That of y.
        kept: What was saved.
    """
    of_what = first, ctx.namespace, tail, needs
    if torch.compiler.is_compiling() or is_last(dy):
        return _first_gradients(*of_what, dy, *kept)
    # With derivatives of its own: those of the formulas.
    args, count = list(kept), len(needs)
    for i, bias in zip(tail.biases, unchanged_biases(ctx), strict=True):
        args.insert(i, bias)
    slope = _slope(ctx.namespace, tail, args[0], *args[count:])
    formula = functools.partial(tail.formula, args[count], slope)
    derivatives: Any = functools.partial(_derivatives, formula, needs)
    if tail.norm.together is not None:
        derivatives = _no_derivatives
    derivable = Derivable(functools.partial(_gradients_of_given, *of_what), derivatives, 1 + count)
    return derivable(dy, *args)


def _gradients_of_given(
    first: Any, namespace: str, tail: Tail, needs: Sequence[bool], dy: Tensor, *args: Any
) -> tuple[Any, ...]:
    """`_first_gradients` of all tensors that the forward took."""
    kept = [t for i, t in enumerate(args) if i not in tail.biases]
    return tuple(_first_gradients(first, namespace, tail, needs, dy, *kept))


def _first_gradients(
    first: Any, namespace: str, tail: Tail, needs: Sequence[bool], dy: Tensor, *kept: Any
) -> list[Any]:
    """By the operators; that of the residual may be dy itself."""
    grads: list[Any] = first(namespace, tail, needs, dy, *kept)
    if needs[1] and tail.act[0] == 0:
        grads[1] = dy
    return grads


def _derivatives(formula: Any, needs: Sequence[bool], dy: Tensor, *args: Any) -> tuple[Any, ...]:
    """What `_gradients` returns, by differentiating the formula."""
    given = list(args[: len(needs)])
    if needs[1] and given[1] is None:  # of which nobody needs the values
        given[1] = torch.zeros_like(given[0])
    found = pull_back(formula, given, [dy])
    return tuple(g if needed else None for g, needed in zip(found, needs, strict=True))


def _no_derivatives(*_: Any) -> Any:
    raise RuntimeError(
        "a batch norm over several processes that runs fused has first derivatives alone; "
        'accelerate(model, fuse="block") leaves it to its layer'
    )


def _slope(
    namespace: str, tail: Tail, x: Tensor, numbers: Tensor, means: Any, pooled: Any, *rest: Any
) -> Tensor | None:
    """The derivative of the activation as a map, where a mask tells it."""
    *of_gate, mask = rest
    if mask is None:
        return None
    with torch.no_grad():
        maps = torch.ones_like(x), x, None, mask, numbers, tail.factor(x, of_gate)
        of_norm: tuple[None, ...] = (None,) * 5
        wanted = False, False, True, False
        return call_eager(namespace, "tail_gradient", *maps, *of_norm, *tail.functions, *wanted)[1]


def gradients(
    namespace: str, tail: Tail, needs: Sequence[bool], dy: Tensor, x: Tensor, residual: Any,
    weight: Any, *kept: Any,
) -> list[Any]:  # fmt: skip
    """Of x, the residual (None where that is dy itself), the norm's and the gate's tensors."""
    count = len(needs) - 3 - len(tail.biases)
    weights, (numbers, means, pooled, *of_gate, mask) = kept[:count], kept[count:]
    need_dx, need_dresidual, need_dweight, need_dbias, *need_gate = needs
    of_norm, gate, together = need_dweight or need_dbias, tail.gate, tail.norm.together
    of_gate_needed = gate is not None and (need_dx or of_norm or any(need_gate))
    grads: list[Any] = [None] * len(needs)
    maps = dy, x, residual, mask, numbers, tail.factor(x, of_gate)
    sums = dpooled = dgate = lost = dweight = dbias = None
    if of_gate_needed or of_norm or (tail.norm.of_batch and need_dx):
        sums, dgate = call_eager(namespace, "tail_reduce", *maps, *tail.functions, of_gate_needed)
    if of_gate_needed:
        assert gate is not None and dgate is not None
        if tail.factors is not None:
            dgate = dgate * tail.factors
        as_map = pooled[:, :, None, None]
        dmap, *found = call_eager(
            namespace, f"{gate.block}_backward", torch.zeros_like(as_map), dgate, as_map, *of_gate,
            *_in_accumulators(weights, x.dtype), *gate.constants, need_dx or of_norm,
            any(need_gate),
        )  # fmt: skip
        if need_dx or of_norm:
            dpooled = dmap[:, :, 0, 0]
        for i, (needed, g) in enumerate(zip(need_gate, found, strict=True), 4):
            if needed:
                grads[i] = g
    if together is not None and sums is not None:
        own = own_sums(tail, x, sums, maps[-1], numbers, means, dpooled)
        lost = together.lost(own, numbers) if need_dx else None
        like = x if weight is None else weight
        dbias, dweight = torch.stack((own[0], own[1] * numbers[3])).to(like.dtype)
        sums, of_norm = None, False
    dresidual = need_dresidual and tail.act[0] != 0
    if need_dx or dresidual or of_norm:
        dx, of_residual, *found = call_eager(
            namespace, "tail_gradient", *maps, sums, means if means.numel() else None, dpooled,
            weight, lost, *tail.functions, tail.norm.of_batch and need_dx, need_dx, dresidual,
            of_norm,
        )  # fmt: skip
        grads[0] = dx if need_dx else None
        if dresidual:
            grads[1] = of_residual
        if of_norm:
            dweight, dbias = found
    grads[2] = dweight if need_dweight else None
    grads[3] = dbias if need_dbias else None
    return grads
