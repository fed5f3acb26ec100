"""What torch knows of the operators: shapes and strides, vmap, and gradients.

The gradients are those that `autograd` and `sk` give the blocks, for graphs in which the operators
are called by themselves: exported programs, and what torch.compile captures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chattn_cuda.ops import sk, tail
from chattn_cuda.ops.autograd import backward_of_graph, setup_graph
from chattn_cuda.ops.blocks import BLOCKS
from chattn_cuda.ops.calls import operator_of

__all__ = ["register_rules", "registered_namespaces"]

registered_namespaces: set[str] = set()
_libraries: list[torch.library.Library] = []  # what is registered lasts as long as they do


def register_rules(namespace: str) -> None:
    """Register shapes, strides, vmap rules and gradients for the operators of ``namespace``."""
    if namespace in registered_namespaces:
        return
    library, of_tails, gradients = tail.define(namespace)
    _libraries.append(library)
    fakes = sk.FAKES | tail.FAKES | of_tails
    gradients |= sk.gradients(namespace)
    for block in BLOCKS.values():
        fakes[f"{block.name}_forward"] = block.fake_forward
        fakes[f"{block.name}_backward"] = block.fake_backward
        of_block = functools.partial(setup_graph, block.name, namespace)
        gradients[f"{block.name}_forward"] = of_block, backward_of_graph
    for name, fake in fakes.items():
        if not hasattr(getattr(torch.ops, namespace), name):
            continue  # Triton lacks some
        qualified = f"{namespace}::{name}"
        operator = operator_of(namespace, name)
        # The kernels read maps of any strides. Without this, Inductor copies what its convolutions
        # give in channels_last back into the format of eager PyTorch.
        operator.tags.append(torch.Tag.flexible_layout)
        torch.library.register_fake(qualified, fake)
        torch.library.register_vmap(qualified, functools.partial(_loop, operator))
        if name in gradients:
            setup, backward = gradients[name]
            torch.library.register_autograd(qualified, backward, setup_context=setup)
        else:
            _refuse_gradients(namespace, name, operator)
    registered_namespaces.add(namespace)


def _refuse_gradients(namespace: str, name: str, operator: Any) -> None:
    """Have the backward through the operator raise, which would otherwise lose the gradient."""

    def kernel(keyset: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)
        flat: list[Any] = []
        for a in args:
            flat += a if isinstance(a, (list, tuple)) else (a,)
        inputs = [t for t in flat if isinstance(t, Tensor) and t.requires_grad]
        if not inputs or not torch.is_grad_enabled():
            return outputs
        message = (
            f"{namespace}::{name} has no derivative of its own; the functions of "
            "chattn_cuda.functional have derivatives of any order"
        )
        return _mapped(lambda t: _Refusal.apply(message, t, *inputs), outputs)

    library = torch.library.Library(namespace, "IMPL")
    library.impl(name, kernel, "Autograd", with_keyset=True)
    _libraries.append(library)


def _mapped(function: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return function(outputs) if outputs.is_floating_point() else outputs
    return type(outputs)(_mapped(function, o) for o in outputs)


class _Refusal(torch.autograd.Function):
    """A result whose gradient raises."""

    @staticmethod
    def forward(ctx: Any, message: str, result: Tensor, *inputs: Tensor) -> Tensor:
        ctx.message = message
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(ctx.message)


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
