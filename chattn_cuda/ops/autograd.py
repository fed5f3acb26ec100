"""Autograd over the operators, written once for every block and backend.

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

from chattn_cuda.ops.block import Block
from chattn_cuda.ops.blocks import BLOCKS
from chattn_cuda.ops.calls import call, call_eager
from chattn_cuda.ops.derivable import Derivable, is_last
from chattn_cuda.ops.saved import save, saved, unchanged_biases

__all__ = ["apply", "apply_eagerly", "backward_of_graph", "setup_graph"]


def apply(block: str, namespace: str, *args: Any) -> tuple[Tensor, Tensor]:
    """Run a block's operators with their gradients.

    Args:
        block: Its name.
        namespace: The backend's operator namespace.
        *args: The forward operator's tensors and constants.

    Returns:
        y and the gate.
    """
    if torch._C._are_functorch_transforms_active():
        y, *_, gate = _TransformableForward.apply(block, namespace, *args)
        return y, gate
    if torch.compiler.is_compiling():
        outputs = call(namespace, f"{block}_forward", *args)
        return outputs[0], outputs[-1]
    return apply_eagerly(block, namespace, *args)


def apply_eagerly(block: str, namespace: str, *args: Any) -> tuple[Tensor, Tensor]:
    """`apply` where it is known that nothing is compiled or transformed."""
    if torch.is_grad_enabled():
        for t in args[: BLOCKS[block].tensors]:
            if t is not None and t.requires_grad:
                return _Forward.apply(block, namespace, *args)
    outputs = call_eager(namespace, f"{block}_forward", *args)
    return outputs[0], outputs[-1]


class _Forward(torch.autograd.Function):
    """First derivatives by the backward operator.

    ``forward(ctx, ...)`` in the old style, because a Function with ``setup_context`` costs three
    times as much per call; `_TransformableForward` has one, for torch.func.
    """

    @staticmethod
    def forward(ctx: Any, block: str, namespace: str, *args: Any) -> Any:
        outputs = call_eager(namespace, f"{block}_forward", *args)
        _save_forward(ctx, block, namespace, args, outputs)
        return outputs[0], outputs[-1]

    @staticmethod
    def backward(ctx: Any, dy: Any, dgate: Any) -> Any:
        return (None, None, *_gradients(ctx, ctx.needs_input_grad[2:], dy, dgate))


class _TransformableForward(torch.autograd.Function):
    @staticmethod
    def forward(block: str, namespace: str, *args: Any) -> Any:
        return call(namespace, f"{block}_forward", *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        block, namespace, *args = inputs
        ctx.mark_non_differentiable(*output[1:-1])
        _save_forward(ctx, block, namespace, args, output, transformable=True)

    @staticmethod
    def backward(ctx: Any, dy: Any, *grads: Any) -> Any:
        return (None, None, *_gradients(ctx, ctx.needs_input_grad[2:], dy, grads[-1]))


def setup_graph(block: str, namespace: str, ctx: Any, inputs: Any, output: Any) -> None:
    """``setup_context`` of the forward operator itself."""
    ctx.mark_non_differentiable(*output[1:-1])
    _save_forward(ctx, block, namespace, inputs, output)


def backward_of_graph(ctx: Any, dy: Any, *grads: Any) -> Any:
    """The backward of the forward operator itself."""
    return _gradients(ctx, ctx.needs_input_grad, dy, grads[-1])


def _save_forward(
    ctx: Any, block: str, namespace: str, args: Sequence[Any], outputs: Sequence[Tensor],
    transformable: bool = False,
) -> None:  # fmt: skip
    spec = BLOCKS[block]
    operands = spec.operands(args, outputs[1:])
    biases = []
    for i in spec.biases:
        biases.append(args[i])
    if transformable:  # transforms reach what autograd keeps, and nothing else
        save(ctx, (*operands, *biases))
    else:
        save(ctx, operands, biases)
    ctx.block, ctx.namespace, ctx.constants = block, namespace, args[spec.tensors :]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, needed: Sequence[bool], dy: Any, dgate: Any) -> tuple[Any, ...]:
    """One for each of the forward's arguments."""
    spec, constants = BLOCKS[ctx.block], ctx.constants
    needs, nothing = needed[: spec.tensors], (None,) * len(constants)
    if dy is None and dgate is None:
        return (*(None for _ in needs), *nothing)
    kept = saved(ctx)
    end = 1 + spec.saved + spec.tensors - 1 - len(spec.biases)
    of_what = spec, ctx.namespace, constants, needs[0], True in needs[1:]
    if torch.compiler.is_compiling() or is_last(dy, dgate):
        grads = _call_backward(*of_what, dy, dgate, kept[:end])
    else:  # with derivatives of its own: those of the formulas
        given = spec.given(kept, kept[end:] or unchanged_biases(ctx))

        def by_operator(dy: Any, dgate: Any, *args: Any) -> tuple[Tensor, ...]:
            return _call_backward(*of_what, dy, dgate, spec.operands(args, args[spec.tensors :]))

        formula = functools.partial(_first_derivatives, spec, constants)
        derivable = Derivable(by_operator, formula, 2 + spec.tensors)
        grads = derivable(dy, dgate, *given, *kept[1 : 1 + spec.saved])
    if False in needs:
        return (*(g if n else None for g, n in zip(grads, needs, strict=True)), *nothing)
    return (*grads, *nothing)


def _call_backward(
    spec: Block, namespace: str, constants: Sequence[Any], need_dx: bool, need_dw: bool, dy: Any,
    dgate: Any, operands: Sequence[Any],
) -> tuple[Tensor, ...]:  # fmt: skip
    if dy is None:  # only the gate was used
        dy = operands[0].new_zeros(()).expand(operands[0].shape)
    if dgate is not None:
        dgate = dgate.contiguous()
    name = f"{spec.name}_backward"
    return call(namespace, name, dy, dgate, *operands, *constants, need_dx, need_dw)


def _first_derivatives(
    spec: Block, constants: Sequence[Any], dy: Any, dgate: Any, *args: Any
) -> tuple[Tensor, ...]:
    """What the backward operator returns, by differentiating the formulas."""
    tensors = list(args[: spec.tensors])
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
