"""The selective kernel: two operators under autograd, with the network between them in PyTorch.

`squeeze` reads the branches, `select` reads them again and writes y. Both give the branches a
gradient, ``dpooled / HW`` and ``gate[m] * dy``. To write their sum once, `squeeze` hands `select`
two *carriers*: tensors of one element, expanded to the shapes of y and of the gate. To autograd
they are what y is made of. The backward of `select` returns dy and the gate as the carriers'
gradients, which brings both to the backward of `squeeze`; that one runs when dpooled is known, and
writes the gradient of every branch in one pass. Nothing is shared on the side, so graphs may be
retained, compiled and differentiated again.

Under torch.func the carriers would lie (a transform may add up their gradients): there each
operator is differentiated by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import memory_format_of
from chattn_cuda.ops.derivable import Derivable
from chattn_cuda.ops.flops import find_operator

__all__ = ["FAKES", "attend", "squeeze", "takes_prologue"]


def takes_prologue(maps: Sequence[Tensor], slices: int) -> bool:
    """Whether `attend` may be given a prologue here: it has no derivative."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return False
    return max(len(maps), slices) > 1


def attend(
    namespace: str,
    maps: Sequence[Tensor],
    slices: int,
    gap: Callable[[Tensor], Tensor],
    prologue: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the block with its gradients.

    Args:
        namespace: The backend's operator namespace.
        maps: The branches (N, C, H, W) or, with ``slices``, one map (N, slices * C, H, W).
        slices: How many branches lie in one map.
        gap: ``gap(pooled)``: the logits (N, M, C) for the mean (N, C), in accumulators.
        prologue: (2, M * C): scale and shift of the branches, see `reference.after_prologue`. For
            where `takes_prologue`.

    Returns:
        y and the gate (N, M, C).
    """
    if torch._C._are_functorch_transforms_active():
        branches = _split(maps, slices)
        logits = gap(squeeze(namespace, branches))
        operator = functools.partial(_select_flat, namespace)
        y, gate = Derivable(operator, _select_formula, 1 + len(branches))(logits, *branches)
        return y, gate
    if torch.is_grad_enabled() and any(u.requires_grad for u in maps):
        # The caller keeps pooled no longer than gap does: it counts where memory is short.
        carriers: list[Tensor] = []
        logits = gap(_pooled(carriers, *_Squeeze.apply(namespace, slices, *maps)))
        return _Select.apply(namespace, slices, logits, *carriers, *maps)
    branches = _split(maps, slices)
    logits = gap(_operator(namespace, "squeeze")(branches, prologue))
    if torch.is_grad_enabled() and logits.requires_grad:
        return _Select.apply(namespace, slices, logits, None, None, *maps)
    return _operator(namespace, "select")(branches, logits, prologue)


def squeeze(namespace: str, branches: Sequence[Tensor]) -> Tensor:
    """The mean (N, C) of the branches' sum, with its gradient: ``dpooled / HW``, expanded."""
    if torch._C._are_functorch_transforms_active():
        operator = functools.partial(_squeeze_flat, namespace)
        return Derivable(operator, _squeeze_formula, len(branches))(*branches)[0]
    return _Mean.apply(namespace, *branches)


def _operator(namespace: str, name: str) -> Any:
    return find_operator(namespace, f"sk_{name}")


def _split(maps: Sequence[Tensor], slices: int) -> list[Tensor]:
    return list(maps[0].chunk(slices, 1)) if slices > 1 else list(maps)


def _pooled(carriers: list[Tensor], pooled: Tensor, *others: Tensor) -> Tensor:
    carriers.extend(others)
    return pooled


# ---- the operators and their formulas, with flat lists of tensors


def _squeeze_flat(namespace: str, *branches: Tensor) -> tuple[Tensor]:
    return (_operator(namespace, "squeeze")(list(branches)),)


def _squeeze_formula(*branches: Tensor) -> tuple[Tensor]:
    return (reference.squeeze_branches(branches),)


def _select_flat(namespace: str, logits: Tensor, *branches: Tensor) -> tuple[Tensor, Tensor]:
    return _operator(namespace, "select")(list(branches), logits)


def _select_formula(logits: Tensor, *branches: Tensor) -> tuple[Tensor, Tensor]:
    return reference.select_branches(branches, logits)


def _dot_flat(namespace: str, slices: int, dy: Any, dgate: Any, gate: Tensor, *maps: Tensor) -> Any:
    if dgate is not None:
        dgate = dgate.contiguous()
    if dy is None:
        return (gate * (dgate - (gate * dgate).sum(1, keepdim=True)),)
    return (_operator(namespace, "dot")(dy, dgate, gate, _split(maps, slices)),)


def _dot_formula(slices: int, dy: Any, dgate: Any, gate: Tensor, *maps: Tensor) -> tuple[Tensor]:
    ds = torch.zeros_like(gate) if dgate is None else dgate
    if dy is not None:
        g = dy.to(gate.dtype)
        dots = [(g * u.to(gate.dtype)).sum((2, 3)) for u in _split(maps, slices)]
        ds = ds + torch.stack(dots, 1)
    return (gate * (ds - (gate * ds).sum(1, keepdim=True)),)


def _gradient_flat(
    namespace: str,
    channels_last: bool,
    stacked: bool,
    dtype: torch.dtype,
    size: Sequence[int],
    dpooled: Any,
    dy: Any,
    gate: Any,
) -> tuple[Tensor, ...]:
    """The gradients of the branches that ``gate`` (N, M, C) has rows for; one map if stacked."""
    if dy is None:
        return _gradient_formula(stacked, dtype, size, dpooled, dy, gate)
    operator = _operator(namespace, "gradient")
    row = size[1] if channels_last else size[1] * size[2] * size[3]
    if stacked and row * dtype.itemsize % 16:
        return (torch.cat(operator(dy, gate, dpooled, channels_last, False), 1),)
    return tuple(operator(dy, gate, dpooled, channels_last, stacked))


def _gradient_formula(
    stacked: bool, dtype: torch.dtype, size: Sequence[int], dpooled: Any, dy: Any, gate: Any
) -> tuple[Tensor, ...]:
    parts = []
    for m in range(gate.shape[1]):
        v = None if dy is None else dy.to(gate.dtype) * gate[:, m, :, None, None]
        if dpooled is not None:
            mean = (dpooled / (size[2] * size[3]))[:, :, None, None].expand(size)
            v = mean if v is None else v + mean
        assert v is not None
        parts.append(v.to(dtype))
    return (torch.cat(parts, 1),) if stacked else tuple(parts)


def _derived(operator: Any, formula: Any, *args: Any) -> tuple[Tensor, ...]:
    """The operator; where it may be differentiated again, with the derivatives of its formula."""
    if torch.compiler.is_compiling():
        return operator(*args)
    # What is_grads_batched of torch.autograd.grad makes has no rule for lists of tensors.
    if any(isinstance(a, Tensor) and torch._C._functorch.is_legacy_batchedtensor(a) for a in args):
        return formula(*args)
    return Derivable(operator, formula, len(args))(*args)


# ---- autograd


class _Mean(torch.autograd.Function):
    """The squeeze without a select behind it."""

    @staticmethod
    def forward(ctx: Any, namespace: str, *branches: Tensor) -> Tensor:
        ctx.size, ctx.dtype, ctx.count = branches[0].shape, branches[0].dtype, len(branches)
        return _operator(namespace, "squeeze")(list(branches))

    @staticmethod
    def backward(ctx: Any, dpooled: Tensor) -> tuple[Any, ...]:
        mean = dpooled / (ctx.size[2] * ctx.size[3])
        grad = mean.to(ctx.dtype)[:, :, None, None].expand(ctx.size)
        return (None, *([grad] * ctx.count))


class _Squeeze(torch.autograd.Function):
    """(pooled, carrier of dy, carrier of the gate); its backward writes the branches' gradients."""

    @staticmethod
    def forward(ctx: Any, namespace: str, slices: int, *maps: Tensor) -> Any:
        n, c, h, w = maps[0].shape
        pooled = _operator(namespace, "squeeze")(_split(maps, slices))
        ctx.namespace, ctx.stacked, ctx.dtype = namespace, slices > 1, maps[0].dtype
        ctx.size = (n, c // slices, h, w)
        ctx.channels_last = memory_format_of(maps[0]) == torch.channels_last
        ctx.count = slices if slices > 1 else len(maps)
        ctx.set_materialize_grads(False)
        of_gate = pooled.new_zeros(()).expand(n, ctx.count, c // slices)
        return pooled, maps[0].new_zeros(()).expand(ctx.size), of_gate

    @staticmethod
    def backward(ctx: Any, dpooled: Any, dy: Any, gate: Any) -> Any:
        needs = ctx.needs_input_grad[2:]
        if dpooled is None and dy is None:
            return (None, None, *(None for _ in needs))
        if gate is None:  # only the gate was used
            gate = dpooled.new_zeros(()).expand(dpooled.shape[0], ctx.count, 1)
        if not all(needs):
            gate = gate[:, [m for m, needed in enumerate(needs) if needed]]
        form = (ctx.stacked, ctx.dtype, ctx.size)
        operator = functools.partial(_gradient_flat, ctx.namespace, ctx.channels_last, *form)
        formula = functools.partial(_gradient_formula, *form)
        grads = list(_derived(operator, formula, dpooled, dy, gate))
        return (None, None, *(grads.pop(0) if needed else None for needed in needs))


class _Select(torch.autograd.Function):
    """(y, gate); its backward hands dy and the gate to the carriers."""

    @staticmethod
    def forward(
        ctx: Any, namespace: str, slices: int, logits: Tensor, of_dy: Any, of_gate: Any, *maps: Any
    ) -> Any:
        y, gate = _operator(namespace, "select")(_split(maps, slices), logits)
        ctx.save_for_backward(gate, *maps)
        ctx.namespace, ctx.slices, ctx.carried = namespace, slices, of_dy is not None
        ctx.set_materialize_grads(False)
        return y, gate

    @staticmethod
    def backward(ctx: Any, dy: Any, dgate: Any) -> Any:
        gate, *maps = ctx.saved_tensors
        nothing = (None,) * len(maps)
        if dy is None and dgate is None:
            return (None, None, None, None, None, *nothing)
        dlogits = None
        if ctx.needs_input_grad[2]:
            operator = functools.partial(_dot_flat, ctx.namespace, ctx.slices)
            formula = functools.partial(_dot_formula, ctx.slices)
            (dlogits,) = _derived(operator, formula, dy, dgate, gate, *maps)
        carried = ctx.carried and dy is not None
        return (None, None, dlogits, dy if carried else None, gate if carried else None, *nothing)


# ---- shapes and strides of the operators' results


def _fake_squeeze(branches: Sequence[Tensor], prologue: Tensor | None = None) -> Tensor:
    u = branches[0]
    return u.new_empty(u.shape[:2], dtype=reference.accumulation_dtype(u.dtype))


def _fake_select(
    branches: Sequence[Tensor], logits: Tensor, prologue: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    u = branches[0]
    y = torch.empty_like(u, memory_format=memory_format_of(u))
    return y, logits.new_empty((u.shape[0], len(branches), u.shape[1]))


def _fake_dot(dy: Tensor, dgate: Tensor | None, gate: Tensor, branches: Sequence[Tensor]) -> Tensor:
    return gate.new_empty(gate.shape)


def _fake_gradient(
    dy: Tensor, gate: Tensor, dpooled: Tensor | None, channels_last: bool, stacked: bool
) -> list[Tensor]:
    n, c, h, w = dy.shape
    m = gate.shape[1]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    count, channels = (1, m * c) if stacked else (m, c)
    return [
        torch.empty(
            (n, channels, h, w), dtype=dy.dtype, device=dy.device, memory_format=memory_format
        )
        for _ in range(count)
    ]


#: By operator, without the namespace.
FAKES: dict[str, Callable[..., Any]] = {
    "sk_squeeze": _fake_squeeze,
    "sk_select": _fake_select,
    "sk_dot": _fake_dot,
    "sk_gradient": _fake_gradient,
}
