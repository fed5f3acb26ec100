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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import activations, reference

__all__ = ["BLOCKS", "Block", "apply", "memory_format_of", "register_fakes"]

_ACTIVATION_OF_CODE = {a.code: a for a in activations.ACTIVATIONS.values()}


@dataclass(frozen=True)
class Block:
    """What distinguishes one block from another.

    Attributes:
        name: Prefix of its operators.
        tensors: Number of tensors that its forward takes, the map first.
        saved: Number of outputs after y; the backward needs them, and the last is the gate.
        operands: ``operands(tensors, outputs)`` picks what the backward operator reads.
        fake_forward: Shapes and strides of the forward operator's outputs.
        fake_backward: Shapes and strides of the backward operator's outputs.
        formulas: ``formulas(*tensors, *constants) -> (y, gate)`` in plain PyTorch, from which
            second derivatives come.
    """

    name: str
    tensors: int
    saved: int
    operands: Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]]
    fake_forward: Callable[..., tuple[Tensor, ...]]
    fake_backward: Callable[..., tuple[Tensor, ...]]
    formulas: Callable[..., tuple[Tensor, Tensor]]


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The memory format of the outputs for a map ``x`` (N, C, H, W).

    A dense map keeps its format (contiguous where it is both). Of the others, those whose channels
    are adjacent and whose pixels are at least C apart count as channels_last: that is what
    PyTorch's own elementwise operations return for them.
    """
    if x.is_contiguous():
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    _, c, h, w = x.shape
    _, sc, sh, sw = x.stride()
    if c > 1 and sc == 1 and h * w > 1 and (h == 1 or sh >= c) and (w == 1 or sw >= c):
        return torch.channels_last
    return torch.contiguous_format


# ---- Squeeze-and-Excitation --------------------------------------------------------------------


def _se_fake_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: int,
    act_param: float,
    gate_fn: int,
    add_maxpool: bool,
) -> tuple[Tensor, ...]:
    n, c = x.shape[:2]
    acc = reference.accumulation_dtype(x.dtype)
    return (
        torch.empty_like(x, memory_format=memory_format_of(x)),
        x.new_empty((n, c), dtype=acc),
        x.new_empty((n, c) if add_maxpool else (0,), dtype=acc),
        x.new_empty((n, w1.shape[0]), dtype=acc),
        x.new_empty((n, c), dtype=acc),
    )


def _se_fake_backward(
    dy: Tensor,
    dgate: Tensor | None,
    x: Tensor,
    pooled: Tensor,
    peak: Tensor,
    hidden: Tensor,
    gate: Tensor,
    w1: Tensor,
    w2: Tensor,
    act: int,
    act_param: float,
    gate_fn: int,
    add_maxpool: bool,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor, ...]:
    dx = torch.empty_like(x, memory_format=memory_format_of(x)) if need_dx else x.new_empty((0,))
    shapes = [w1.shape, w1.shape[:1], w2.shape, w2.shape[:1]] if need_dw else [(0,)] * 4
    return (dx, *(w1.new_empty(shape) for shape in shapes))


def _se_formulas(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    act: int,
    act_param: float,
    gate_fn: int,
    add_maxpool: bool,
) -> tuple[Tensor, Tensor]:
    return reference.squeeze_excite(
        x,
        w1,
        b1,
        w2,
        b2,
        _ACTIVATION_OF_CODE[act].with_param(act_param),
        _ACTIVATION_OF_CODE[gate_fn].with_param(0.0),
        add_maxpool,
    )


def _se_operands(tensors: Sequence[Any], outputs: Sequence[Any]) -> tuple[Any, ...]:
    x, w1, _, w2, _ = tensors
    return (x, *outputs, w1, w2)


BLOCKS: dict[str, Block] = {
    "se": Block("se", 5, 4, _se_operands, _se_fake_forward, _se_fake_backward, _se_formulas),
}


# ---- shared by all blocks ----------------------------------------------------------------------


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
    if torch.is_grad_enabled():
        for t in args[: BLOCKS[block].tensors]:
            if t is not None and t.requires_grad:
                return _Forward.apply(block, namespace, *args)
    outputs = _operator(namespace, block, "forward")(*args)
    return outputs[0], outputs[-1]


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
    _registered.add(namespace)


def _loop(operator: Any, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    """vmap, sample by sample: the samples may have weights of their own."""
    outputs = [
        operator(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    stacked = tuple(torch.stack(column) for column in zip(*outputs, strict=True))
    return stacked, (0,) * len(stacked)
