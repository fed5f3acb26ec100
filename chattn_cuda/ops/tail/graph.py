"""The whole tail as operators, which torch.compile sees as one call with a gradient.

``tail_forward`` and ``tail_backward`` are those without a gate, ``tail_<block>_forward`` and
``tail_<block>_backward`` those with a block's. They are made in Python, of the operators that read
the maps and of the block's own; eager PyTorch does without them (`function`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chattn_cuda.ops.block import Block
from chattn_cuda.ops.blocks import BLOCKS
from chattn_cuda.ops.calls import call
from chattn_cuda.ops.saved import saved
from chattn_cuda.ops.tail import function
from chattn_cuda.ops.tail.description import GATES, Gate, Norm, Tail

__all__ = ["WHOLE", "define"]

_DERIVATIVES: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    1: lambda dy, y: torch.ops.aten.threshold_backward(dy, y, 0),
    2: lambda dy, y: torch.ops.aten.hardtanh_backward(dy, y, 0, 6),
}
"""Of ReLU and ReLU6, from their results."""
_FUNCTIONS = "int inner", "float inner_param", "int act", "float act_param"


class _Whole:
    """The operators of the tails with one kind of gate, or with none."""

    def __init__(self, gate: str | None) -> None:
        self.block: Block | None = None if gate is None else BLOCKS[gate]
        self.prefix = "tail" if gate is None else f"tail_{gate}"
        #: numbers of the tensors that the forward differentiates and the backward reads
        self.count, self.read, self.constants = 4, 3, len(_FUNCTIONS)
        if self.block is not None:
            self.count += len(self.block.weights)
            self.read += len(self.block.weights) - len(self.block.biases)
            self.constants += len(self.block.constants)

    @property
    def schemas(self) -> tuple[str, str]:
        """Of the forward and the backward, without a namespace."""
        weights: list[str] = []
        read: list[str] = []
        constants: list[str] = []
        saved: list[str] = []
        if (block := self.block) is not None:
            for w in block.weights:
                weights.append(f"Tensor{'?' * w.optional} {block.name}_{w.name}")
                read += () if w.is_bias else weights[-1:]
            for constant in block.constants:
                kind, name = constant.split()
                constants.append(f"{kind} {block.name}_{name}")
            saved += (f"Tensor {block.name}_{s.name}" for s in block.outputs)
        given = ["Tensor x", "Tensor? residual", "Tensor? weight", "Tensor? bias", *weights]
        statistics = ["Tensor? mean", "Tensor? var", "Tensor? factors", "float eps"]
        functions, means = (*_FUNCTIONS, *constants), ("Tensor means", "Tensor pooled")
        results = ["Tensor y", "Tensor numbers", "Tensor variance", *means, *saved]
        backward = ["Tensor dy", *given[:3], *read, "Tensor numbers", *means, *saved]
        backward += ["Tensor? factors", "bool of_batch", *functions, "bool[] needs"]
        gradients = [f"Tensor d{argument.split()[1]}" for argument in given]

        def schema(way: str, arguments: Sequence[str], returned: Sequence[str]) -> str:
            return f"{self.prefix}_{way}({', '.join(arguments)}) -> ({', '.join(returned)})"

        return (
            schema("forward", [*given, *statistics, *functions], results),
            schema("backward", backward, gradients),
        )

    def _tail(self, norm: Norm, factors: Any, constants: Sequence[Any]) -> Tail:
        inner, inner_param, act, act_param, *of_gate = constants
        gate = None if self.block is None else Gate(self.block.name, tuple(of_gate))
        return Tail(norm, gate, (inner, inner_param), (act, act_param), factors)

    def _given(self, args: Sequence[Any]) -> tuple[Tail, Sequence[Any]]:
        """The tail and its tensors, from the forward's arguments."""
        mean, var, factors, eps, *constants = args[self.count :]
        return self._tail(Norm(mean, var, eps), factors, constants), args[: self.count]

    def forward(self, namespace: str, *args: Any) -> tuple[Tensor, ...]:
        """The forward operator: without a mask, whose shape would depend on the layout of x."""
        return function.forward(namespace, *self._given(args), need_mask=False)[:-1]

    def backward(self, namespace: str, dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
        """The backward operator; (0,) for what is not needed."""
        *kept, needs = args
        at = len(kept) - 2 - self.constants
        factors, of_batch, *constants = kept[at:]
        del kept[at:]
        numbers = kept[self.read]
        norm = Norm(None, None, 0.0) if of_batch else Norm(numbers[2], numbers[3], 0.0)
        tail = self._tail(norm, factors, constants)
        grads = function.gradients(namespace, tail, needs, dy, *kept, None)
        return tuple(dy.new_empty((0,)) if g is None else g for g in grads)

    def setup(self, namespace: str, ctx: Any, inputs: Any, output: Any) -> None:
        """``setup_context`` of the forward operator."""
        ctx.mark_non_differentiable(*output[1:])
        outputs = (*output, output[0])  # y tells, too, where the last activation's derivative is 0
        function.save_forward(ctx, namespace, *self._given(inputs), outputs)

    def gradient(self, ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
        """``backward`` of the forward operator.

        The derivative of ReLU and ReLU6 is an operation of its own, for Inductor to fuse with the
        sum of gradients that dy mostly is.
        """
        needs = ctx.needs_input_grad
        if dy is None:
            return (None,) * len(needs)
        *kept, y = saved(ctx)
        tail = ctx.tail
        if y is not None:
            dy, tail = _DERIVATIVES[tail.act[0]](dy, y), replace(tail, act=(0, 0.0))
        grads = function.backward(ctx, _call, tail, needs[: self.count], dy, (*kept, None))
        return (*grads, *(None for _ in needs[self.count :]))


def _call(
    namespace: str, tail: Tail, needs: Sequence[bool], dy: Tensor, *kept: Any
) -> list[Tensor | None]:
    """`function.gradients` by the backward operator."""
    found = call(
        namespace, tail.operator("backward"), dy, *kept[:-1], tail.factors, tail.norm.of_batch,
        *tail.constants, list(needs),
    )  # fmt: skip
    return [g if needed else None for g, needed in zip(found, needs, strict=True)]


_WHOLE = [_Whole(gate) for gate in (None, *GATES)]

#: Their names, without the namespace; each forward before its backward.
WHOLE = tuple(f"{w.prefix}_{way}" for w in _WHOLE for way in ("forward", "backward"))


def define(namespace: str) -> tuple[torch.library.Library, dict[str, Any], dict[str, Any]]:
    """Define them in a backend's namespace.

    Returns:
        Their library, which they last as long as; by operator, what tells their shapes, and
        ``setup_context`` and ``backward`` of those that have a gradient.
    """
    library = torch.library.Library(namespace, "FRAGMENT")
    kernels: dict[str, Callable[..., Any]] = {}
    gradients = {}
    for whole in _WHOLE:
        for way, schema in zip(("forward", "backward"), whole.schemas, strict=True):
            name = f"{whole.prefix}_{way}"
            kernels[name] = functools.partial(getattr(whole, way), namespace)
            library.define(schema)
            library.impl(name, kernels[name], "CompositeExplicitAutograd")
        setup = functools.partial(whole.setup, namespace)
        gradients[f"{whole.prefix}_forward"] = setup, whole.gradient
    return library, kernels, gradients
