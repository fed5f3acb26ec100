"""Autograd, fake kernels and vmap over the operators, written once for every block and backend.

A block is a pair of operators ``<name>_forward`` and ``<name>_backward`` with the same schema in
every backend's namespace. `Block` says what differs between blocks; everything else is shared:

- the forward operator takes the block's tensors, then its constants, and returns
  ``(y, *intermediates, gate)``;
- the backward operator takes ``(dy, dgate, *operands, *constants, need_dx, need_dw)`` and returns
  one gradient per tensor of the forward.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops import eca, se
from chattn_cuda.ops.block import Block
from chattn_cuda.ops.flops import register_flops

__all__ = ["BLOCKS", "apply", "register_fakes"]

#: A new block adds its line here.
BLOCKS: dict[str, Block] = {block.name: block for block in (se.BLOCK, eca.BLOCK)}


def apply(block: str, namespace: str, *args: Any) -> tuple[Tensor, Tensor]:
    """Run a block's operators with their gradients.

    Args:
        block: Key of `BLOCKS`.
        namespace: The backend's operator namespace.
        *args: The forward operator's tensors and constants.

    Returns:
        y and the gate.
    """
    if torch._C._are_functorch_transforms_active():
        outputs = _TransformableForward.apply(block, namespace, *args)
        return outputs[0], outputs[-1]
    if torch.compiler.is_compiling():
        args = tuple(_constant(a) if isinstance(a, float) else a for a in args)
    if torch.is_grad_enabled():
        for t in args[: BLOCKS[block].tensors]:
            if t is not None and t.requires_grad:
                return _Forward.apply(block, namespace, *args)
    outputs = _operator(namespace, block, "forward")(*args)
    return outputs[0], outputs[-1]


def _constant(value: float) -> float:
    """The value as a constant of the graph.

    With dynamic shapes, numbers of attributes become inputs of the graph, which the bodies of two
    autograd functions cannot share. Text specialises them.
    """
    return float(f"{value!r}")


def _operator(namespace: str, block: str, direction: str) -> Any:
    return getattr(getattr(torch.ops, namespace), f"{block}_{direction}").default


def _call_backward(
    block: str, namespace: str, need_dx: bool, need_dw: bool, dy: Any, dgate: Any, *args: Any
) -> tuple[Tensor, ...]:
    """The backward operator on ``args``: the block's tensors, saved outputs and constants."""
    spec = BLOCKS[block]
    tensors, saved, constants = _split(spec, args)
    if dy is None:  # only the gate was used
        dy = tensors[0].new_zeros(()).expand(tensors[0].shape)
    if dgate is not None:
        dgate = dgate.contiguous()
    operator = _operator(namespace, block, "backward")
    return operator(dy, dgate, *spec.operands(tensors, saved), *constants, need_dx, need_dw)


def _split(spec: Block, args: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    end = spec.tensors + spec.saved
    return args[: spec.tensors], args[spec.tensors : end], args[end:]


class _Forward(torch.autograd.Function):
    """First derivatives by the backward operator.

    ``forward(ctx, ...)`` in the old style, because a Function with ``setup_context`` costs three
    times as much per call; `_TransformableForward` has one, for torch.func.
    """

    @staticmethod
    def forward(ctx: Any, block: str, namespace: str, *args: Any) -> Any:
        outputs = _operator(namespace, block, "forward")(*args)
        _save_forward(ctx, block, namespace, args, outputs)
        return outputs[0], outputs[-1]

    @staticmethod
    def backward(ctx: Any, dy: Any, dgate: Any) -> Any:
        return _backward(ctx, dy, dgate)


class _TransformableForward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(block: str, namespace: str, *args: Any) -> Any:
        return _operator(namespace, block, "forward")(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        block, namespace, *args = inputs
        ctx.mark_non_differentiable(*output[1:-1])
        _save_forward(ctx, block, namespace, args, output)

    @staticmethod
    def backward(ctx: Any, dy: Any, *grads: Any) -> Any:
        return _backward(ctx, dy, grads[-1])


def _save_forward(
    ctx: Any, block: str, namespace: str, args: Sequence[Any], outputs: Sequence[Tensor]
) -> None:
    tensors = BLOCKS[block].tensors
    ctx.save_for_backward(*args[:tensors], *outputs[1:])
    ctx.block, ctx.namespace, ctx.constants = block, namespace, tuple(args[tensors:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Any, dgate: Any) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[2 : 2 + BLOCKS[ctx.block].tensors]
    nothing = (None,) * len(ctx.constants)
    if dy is None and dgate is None:
        return (None, None, *(None for _ in needs), *nothing)
    args = (ctx.block, ctx.namespace, needs[0], any(needs[1:]), dy, dgate, *ctx.saved_tensors)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        grads = _call_backward(*args, *ctx.constants)
    elif torch._C._are_functorch_transforms_active():
        grads = _TransformableBackward.apply(*args, *ctx.constants)
    else:
        grads = _Backward.apply(*args, *ctx.constants)
    return (None, None, *(g if n else None for g, n in zip(grads, needs, strict=True)), *nothing)


class _Backward(torch.autograd.Function):
    """The backward operator, with derivatives of its own: those of the formulas."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        _save_backward(ctx, args)
        return _call_backward(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _double_backward(ctx, grads)


class _TransformableBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Any:
        return _call_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _save_backward(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _double_backward(ctx, grads)


def _save_backward(ctx: Any, args: Sequence[Any]) -> None:
    block, _, need_dx, need_dw, dy, dgate, *rest = args
    tensors, _, ctx.constants = _split(BLOCKS[block], rest)
    ctx.save_for_backward(dy, dgate, *tensors)
    ctx.block, ctx.need_dx, ctx.need_dw = block, need_dx, need_dw
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, grads: Sequence[Any]) -> tuple[Any, ...]:
    """Derivatives of ``(dy, dgate, *tensors) -> gradients``, by differentiating the formulas."""
    spec = BLOCKS[ctx.block]
    inputs = ctx.saved_tensors
    present = [i for i, t in enumerate(inputs) if t is not None]
    wanted = [i for i, g in enumerate(grads) if g is not None and inputs[2 + i] is not None]

    def first_derivatives(*operands: Tensor) -> tuple[Tensor, ...]:
        full: list[Any] = [None] * len(inputs)
        for i, t in zip(present, operands, strict=True):
            full[i] = t
        dy, dgate, *tensors = full
        variables = [i for i, t in enumerate(tensors) if t is not None]

        def formulas(*values: Tensor) -> tuple[Tensor, Tensor]:
            for i, t in zip(variables, values, strict=True):
                tensors[i] = t
            return spec.formulas(*tensors, *ctx.constants)

        (y, gate), pull, *_ = torch.func.vjp(formulas, *(tensors[i] for i in variables))
        dy = torch.zeros_like(y) if dy is None else dy
        dgate = torch.zeros_like(gate) if dgate is None else dgate
        result = dict(zip(variables, pull((dy, dgate)), strict=True))
        return tuple(result[i] for i in wanted)

    result: list[Any] = [None] * len(inputs)
    if wanted:
        with reference.no_autocast(grads[wanted[0]].device.type):
            _, pull, *_ = torch.func.vjp(first_derivatives, *(inputs[i] for i in present))
            pulled = pull(tuple(grads[i] for i in wanted))
        for i, g in zip(present, pulled, strict=True):
            result[i] = g
    rest = (None,) * (spec.saved + len(ctx.constants))
    return (None, None, None, None, *result, *rest)


_registered: set[str] = set()


def register_fakes(namespace: str) -> None:
    """Register shapes, strides and the vmap rule for the operators of ``namespace``, once."""
    if namespace in _registered:
        return
    for block in BLOCKS.values():
        for direction, fake in (
            ("forward", block.fake_forward),
            ("backward", block.fake_backward),
        ):
            name = f"{namespace}::{block.name}_{direction}"
            torch.library.register_fake(name, fake)
            torch.library.register_vmap(
                name, functools.partial(_loop, _operator(namespace, block.name, direction))
            )
    register_flops(namespace)
    _registered.add(namespace)


def _loop(operator: Any, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    """vmap, sample by sample: the samples may have weights of their own."""
    if info.batch_size == 0:  # only the shapes are wanted: those of a sample of zeros
        sample = (
            a if d is None else a.new_zeros((*a.shape[:d], *a.shape[d + 1 :]))
            for a, d in zip(args, in_dims, strict=True)
        )
        empty = tuple(o.new_empty((0, *o.shape)) for o in operator(*sample))
        return empty, (0,) * len(empty)
    outputs = [
        operator(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    stacked = tuple(torch.stack(column) for column in zip(*outputs, strict=True))
    return stacked, (0,) * len(stacked)
