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

from chattn_cuda.ops import eca, se, sk
from chattn_cuda.ops.block import Block
from chattn_cuda.ops.derivable import Derivable
from chattn_cuda.ops.flops import find_eager_operator, find_operator

__all__ = ["BLOCKS", "apply", "apply_eagerly", "register_fakes"]

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


def apply_eagerly(block: str, namespace: str, *args: Any) -> tuple[Tensor, Tensor]:
    """`apply` where it is known that nothing is compiled or transformed."""
    if torch.is_grad_enabled():
        for t in args[: BLOCKS[block].tensors]:
            if t is not None and t.requires_grad:
                return _Forward.apply(block, namespace, *args)
    outputs = find_eager_operator(namespace, f"{block}_forward")(*args)
    return outputs[0], outputs[-1]


def _constant(value: float) -> float:
    """The value as a constant of the graph.

    With dynamic shapes, numbers of attributes become inputs of the graph, which the bodies of two
    autograd functions cannot share. Text specialises them.
    """
    return float(f"{value!r}")


def _operator(namespace: str, block: str, direction: str) -> Any:
    return find_operator(namespace, f"{block}_{direction}")


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
    args = (dy, dgate, *ctx.saved_tensors, *ctx.constants)
    given = (ctx.block, ctx.namespace, needs[0], any(needs[1:]))
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        grads = _call_backward(*given, *args)
    else:  # with derivatives of its own: those of the formulas
        spec, call = BLOCKS[ctx.block], functools.partial(_call_backward, *given)
        formula = functools.partial(_first_derivatives, spec)
        grads = Derivable(call, formula, 2 + spec.tensors)(*args)
    return (None, None, *(g if n else None for g, n in zip(grads, needs, strict=True)), *nothing)


def _first_derivatives(spec: Block, dy: Any, dgate: Any, *args: Any) -> tuple[Tensor, ...]:
    """What the backward operator returns, by differentiating the formulas."""
    given, _, constants = _split(spec, args)
    tensors = list(given)
    variables = [i for i, t in enumerate(tensors) if t is not None]

    def formulas(*values: Tensor) -> tuple[Tensor, Tensor]:
        for i, t in zip(variables, values, strict=True):
            tensors[i] = t
        return spec.formulas(*tensors, *constants)

    (y, gate), pull, *_ = torch.func.vjp(formulas, *(tensors[i] for i in variables))
    dy = torch.zeros_like(y) if dy is None else dy
    dgate = torch.zeros_like(gate) if dgate is None else dgate
    result: list[Any] = [None] * spec.tensors
    for i, g in zip(variables, pull((dy, dgate)), strict=True):
        result[i] = g
    return tuple(result)


_registered: set[str] = set()


def register_fakes(namespace: str) -> None:
    """Register shapes, strides and the vmap rule for the operators of ``namespace``, once."""
    if namespace in _registered:
        return
    fakes = dict(sk.FAKES)
    for block in BLOCKS.values():
        fakes[f"{block.name}_forward"] = block.fake_forward
        fakes[f"{block.name}_backward"] = block.fake_backward
    for name, fake in fakes.items():
        if not hasattr(getattr(torch.ops, namespace), name):
            continue  # the operators of a whole selective kernel are the CPU's alone
        torch.library.register_fake(f"{namespace}::{name}", fake)
        operator = getattr(getattr(torch.ops, namespace), name).default
        torch.library.register_vmap(f"{namespace}::{name}", functools.partial(_loop, operator))
    _registered.add(namespace)


def _loop(operator: Any, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    """vmap, sample by sample: the samples may have weights of their own."""

    def sample(value: Any, dim: Any, i: int) -> Any:
        if isinstance(value, (list, tuple)):
            dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(value)
            return [sample(v, d, i) for v, d in zip(value, dims, strict=True)]
        if dim is None:
            return value
        if info.batch_size == 0:
            return value.new_zeros((*value.shape[:dim], *value.shape[dim + 1 :]))
        return value.select(dim, i)

    if info.batch_size == 0:  # only the shapes are wanted: those of a sample of zeros
        outputs = operator(*(sample(a, d, 0) for a, d in zip(args, in_dims, strict=True)))
        if isinstance(outputs, Tensor):
            return outputs.new_empty((0, *outputs.shape)), 0
        empty = type(outputs)(o.new_empty((0, *o.shape)) for o in outputs)
        return empty, type(outputs)(0 for _ in empty)
    outputs = [
        operator(*(sample(a, d, i) for a, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs), 0
    kind = type(outputs[0])
    stacked = kind(torch.stack(column) for column in zip(*outputs, strict=True))
    return stacked, kind(0 for _ in stacked)
