"""A block's description, and what follows from it.

A block is a pair of operators ``<name>_forward`` and ``<name>_backward``. Its tensors, constants
and shapes are written down once (`Block`); the schemas, shapes and strides for torch.compile,
what autograd keeps, and the counts of floating-point operations are derived.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import activations, reference

__all__ = [
    "Block",
    "Saved",
    "Weight",
    "activation_of_code",
    "in_format_of",
    "memory_format_of",
]

_ACTIVATION_OF_CODE = {a.code: a for a in activations.ACTIVATIONS.values()}


def activation_of_code(code: int, param: float = 0.0) -> Callable[[Tensor], Tensor]:
    """The function of one tensor that an operator's arguments name."""
    return _ACTIVATION_OF_CODE[code].with_param(param)


@dataclass(frozen=True)
class Weight:
    """A tensor beside the map, which may have a gradient.

    Attributes:
        name: Of the argument.
        shape: Symbols, as in "rd c"; n, c, h and w are the map's. A weight may have axes of size 1
            behind these.
        optional: Whether it may be None.
        is_bias: Whether the backward operator does not read it.
        beside: Of a bias: the weight without which it has no gradient either.
        products: Symbols, besides n, whose product is the number of multiplications per sample;
            empty for none.
    """

    name: str
    shape: str
    optional: bool = False
    is_bias: bool = False
    beside: str = ""
    products: str = ""


@dataclass(frozen=True)
class Saved:
    """An output behind y, in the accumulation type: the backward reads it; the last is the gate.

    Attributes:
        name: Of the result, and of the backward operator's argument.
        shape: As a weight's.
        beside: A weight, without which it is empty.
    """

    name: str
    shape: str
    beside: str = ""


@dataclass(frozen=True)
class Block:
    """What distinguishes one block from another. Its map is called x and has the shape "n c h w".

    Attributes:
        name: Prefix of its operators.
        weights: In the order of the arguments, behind the map.
        constants: The arguments behind the tensors, as a schema has them.
        outputs: Those behind y.
        formulas: ``formulas(x, *weights, *constants) -> (y, gate)`` in plain PyTorch, from which
            second derivatives come.
        others: ``others(x, *weights, *constants)``: the outputs between y and the gate, likewise.
    """

    name: str
    weights: tuple[Weight, ...]
    constants: tuple[str, ...]
    outputs: tuple[Saved, ...]
    formulas: Callable[..., tuple[Tensor, Tensor]]
    others: Callable[..., tuple[Tensor, ...]]

    @functools.cached_property
    def tensors(self) -> int:
        """Number of tensors that its forward takes, the map first."""
        return 1 + len(self.weights)

    @functools.cached_property
    def saved(self) -> int:
        """Number of outputs after y."""
        return len(self.outputs)

    @functools.cached_property
    def biases(self) -> tuple[int, ...]:
        """Which of the tensors the backward operator does not read."""
        return tuple(i for i, w in enumerate(self.weights, 1) if w.is_bias)

    # ---- schemas
    @property
    def schemas(self) -> tuple[str, str]:
        """Of the operators, without a namespace."""
        kinds = {w.name: f"Tensor{'?' * w.optional} {w.name}" for w in self.weights}
        operands = [s.name for s in self.outputs]
        forward = ["Tensor x", *kinds.values(), *self.constants]
        backward = ["Tensor dy", "Tensor? dgate", "Tensor x", *(f"Tensor {o}" for o in operands)]
        backward += [kinds[w.name] for w in self.weights if not w.is_bias]
        backward += [*self.constants, "bool need_dx", "bool need_dw"]
        results, gradients = ["y", *operands], ["dx", *(f"d{name}" for name in kinds)]

        def schema(way: str, arguments: Sequence[str], returned: Sequence[str]) -> str:
            of_results = ", ".join(f"Tensor {name}" for name in returned)
            return f"{self.name}_{way}({', '.join(arguments)}) -> ({of_results})"

        return schema("forward", forward, results), schema("backward", backward, gradients)

    # ---- shapes
    def fake_forward(self, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        """Shapes and strides of the forward operator's outputs."""
        weights = dict(zip((w.name for w in self.weights), args, strict=False))
        sizes = self._sizes(x.shape, weights)
        acc = reference.accumulation_dtype(x.dtype)
        outputs = [torch.empty_like(x, memory_format=memory_format_of(x))]
        for s in self.outputs:
            empty = s.beside and weights[s.beside] is None
            outputs.append(x.new_empty((0,) if empty else _of(s.shape, sizes), dtype=acc))
        return tuple(outputs)

    def fake_backward(self, dy: Tensor, dgate: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
        """Shapes and strides of the backward operator's outputs."""
        x, weights = args[0], self._read(args)
        need_dx, need_dw = args[-2:]
        sizes = self._sizes(x.shape, weights)
        like = next(t for t in reversed(weights.values()) if t is not None)
        gradients = [x.new_empty((0,))]
        if need_dx:
            gradients = [torch.empty_like(x, memory_format=memory_format_of(x))]
        for w in self.weights:
            owner = w.beside if w.is_bias else w.name
            if not need_dw or (owner and weights[owner] is None):
                gradients.append(like.new_empty((0,)))
            elif w.is_bias:
                gradients.append(like.new_empty(_of(w.shape, sizes)))
            else:
                gradients.append(like.new_empty(weights[w.name].shape))
        return tuple(gradients)

    def _read(self, operands: Sequence[Any]) -> dict[str, Any]:
        """The weights among the backward operator's operands: the map, the saved, the weights."""
        names = [w.name for w in self.weights if not w.is_bias]
        return dict(zip(names, operands[1 + self.saved :], strict=False))

    def _sizes(self, x: Sequence[int], weights: Mapping[str, Any]) -> dict[str, int]:
        """What the symbols stand for."""
        sizes = dict(zip("nchw", x, strict=True))
        for w in self.weights:
            shape = weights.get(w.name)
            if shape is not None:
                shape = getattr(shape, "shape", shape)
                for symbol, size in zip(w.shape.split(), shape, strict=False):
                    sizes.setdefault(symbol, size)
        return sizes

    # ---- plain PyTorch
    def decomposed(self, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        """What the forward operator returns, by the formulas."""
        y, gate = self.formulas(x, *args)
        return in_format_of(x, y), *self.others(x, *args), gate

    # ---- floating-point operations
    def forward_flops(self, x: Sequence[int], *args: Any, **_: Any) -> int:
        """Of the forward operator, for shapes instead of tensors."""
        weights = dict(zip((w.name for w in self.weights), args, strict=False))
        return sum(self._products(x, weights))

    def backward_flops(self, dy: Sequence[int], dgate: Any, *args: Any, **_: Any) -> int:
        """Of the backward operator, for shapes instead of tensors."""
        need_dx, need_dw = args[-2:]
        total, before = 0, need_dx  # whether what lies before a layer has gradients
        for product in self._products(args[0], self._read(args)):
            total += (before + need_dw) * product
            before = before or need_dw
        return total

    def _products(self, x: Sequence[int], weights: Mapping[str, Any]) -> list[int]:
        """Of the layers that are there, in their order: two per multiplication."""
        sizes, found = self._sizes(x, weights), []
        for w in self.weights:
            if w.products and weights[w.name] is not None:
                product = 2 * sizes["n"]
                for symbol in w.products.split():
                    product *= sizes[symbol]
                found.append(product)
        return found

    # ---- what autograd keeps
    def operands(self, tensors: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """What the backward operator reads: the map, the outputs after y, and the weights."""
        operands = [tensors[0], *outputs]
        for i in range(1, self.tensors):
            if i not in self.biases:
                operands.append(tensors[i])
        return operands

    def given(self, operands: Sequence[Any], biases: Sequence[Any]) -> list[Any]:
        """The forward's tensors, from the backward's and the biases."""
        weights, others = iter(operands[1 + self.saved :]), iter(biases)
        rest = range(1, self.tensors)
        return [operands[0], *(next(others if i in self.biases else weights) for i in rest)]


def _of(shape: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[symbol] for symbol in shape.split())


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """``y`` in the memory format of the outputs for a map ``x``."""
    return y.contiguous(memory_format=memory_format_of(x))


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The memory format of the outputs for a map ``x`` (N, C, H, W).

    A dense map keeps its format (contiguous where it is both). Of the others, those whose channels
    are adjacent and whose pixels are at least C apart count as channels_last: that is what
    PyTorch's own elementwise operations return for them.
    """
    if x.is_contiguous():
        return torch.contiguous_format
    if torch._C._are_functorch_transforms_active() and torch._C._functorch.is_batchedtensor(x):
        return torch.contiguous_format  # vmap does not tell
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    _, c, h, w = x.shape
    _, sc, sh, sw = x.stride()
    if c > 1 and sc == 1 and h * w > 1 and (h == 1 or sh >= c) and (w == 1 or sw >= c):
        return torch.channels_last
    return torch.contiguous_format
