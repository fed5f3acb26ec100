"""What a block brings to the case table."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tests.cases.triton import Triton
from tests.cuda_host.kernels import Kernels

Error = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]


@dataclass(frozen=True)
class Config:
    """One size and set of options."""

    name: str
    shape: tuple[int, int, int, int]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_large(self) -> bool:
        """Takes a second or more: run with one layout per dtype, float32 with both."""
        return math.prod(self.shape) > 50_000

    @property
    def is_huge(self) -> bool:
        """Takes some seconds: float32 only."""
        return math.prod(self.shape) > 1_000_000


@dataclass(frozen=True)
class Variant:
    """Keywords of a block's function, and weights of other shapes."""

    keywords: dict[str, Any]
    weights: Callable[[int], list[tuple[int, ...]]] | None = None


@dataclass(frozen=True)
class ByHand:
    """Values of the formula that somebody computed by hand.

    Attributes:
        name: Of the test.
        compute: What the formula says.
        expected: The same numbers, in the order of its tensors.
        within: How far they may be apart.
    """

    name: str
    compute: Callable[[], Sequence[Tensor]]
    expected: tuple[list[float], ...]
    within: float = 0.0


@dataclass(frozen=True)
class DropIn:
    """A module of ours that has the constructor, keys and results of another library's.

    Attributes:
        ours: Its name in `chattn_cuda.modules`.
        theirs: The qualified name of the other.
        settings: Keywords for both.
        obstacles: Why the operators do not cover theirs with these attributes.
    """

    ours: str
    theirs: str
    settings: tuple[dict[str, Any], ...] = ({},)
    obstacles: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def library(self) -> str:
        return self.theirs.partition(".")[0]

    def load(self) -> Any:
        """Their class."""
        module, _, name = self.theirs.rpartition(".")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        name: Its name.
        parameters: ``parameters(config, random)``: the weights by name, float64.
        run: ``run(x, parameters, options, backend)`` returns (y, gate) by the package.
        eager: ``eager(x, parameters, options)`` returns (y, gate) in plain PyTorch.
        shapes: Sizes, for the backends that are fast.
        small: Sizes for the slow ones (interpreters), each meant to hit another corner.
        options: Variants, run on one small size.
        function: The function of `chattn_cuda.functional`, of a map and weights, for the tests of
            derivatives.
        weights: ``weights(channels)``: shapes of the weights that it takes behind x.
        smooth: Keywords with which it is smooth.
        operator_tensors: From the tensors of the function to those of the forward operator.
        operator: Prefix of its operators, where it is not its name; empty without any.
        is_map: Whether a parameter is a map like x, in its layout.
        gate_shape: ``gate_shape(config)``: the shape of the gate that ``run`` returns.
        maps: How many maps its function keeps for the backward.
        operators: What a forward and a backward call in parts, in order; by default one each.
        forward_operators: How many of them are the forward's.
        whole_on: Backends that have one each all the same, for a function's default options.
        variants: Keywords by name, some with weights of other shapes.
        constants: What its forward operator takes behind the tensors, in some variants; the last is
            smooth.
        not_finite: By the name of the test, options for maps with NaN and infinities.
        threads: Options for the test of other numbers of threads; None if it has no kernels.
        shared_sums: Sizes at which blocks of threads share a sum, and the last to arrive adds up.
        by_hand: Of a block with operators of its own, as are those that follow.
        kernels: Its CUDA kernels.
        triton: Its Triton kernels.
        samples: ``samples[name](cls, channels)`` makes a class of ours, or a peer by its qualified
            name, where that takes more than its channels.
        drop_ins: Modules in the place of other libraries'.
        errors: By name, calls that cannot be, with the kind and words of their errors.
    """

    name: str
    parameters: Callable[[Config, Callable[..., Tensor]], dict[str, Tensor | None]]
    run: Callable[..., tuple[Tensor, Tensor]]
    eager: Callable[..., tuple[Tensor, Tensor]]
    shapes: tuple[Config, ...]
    small: tuple[Config, ...]
    options: tuple[Config, ...]
    function: Callable[..., Any] | None = None
    weights: Callable[[int], list[tuple[int, ...]]] = lambda channels: []
    variants: dict[str, Variant] = field(default_factory=dict)
    constants: tuple[tuple[Any, ...], ...] = ()
    smooth: dict[str, Any] = field(default_factory=dict)
    operator_tensors: Callable[[list[Any]], list[Any]] = lambda tensors: tensors
    operator: str | None = None
    is_map: Callable[[str], bool] = lambda name: name == "x"
    gate_shape: Callable[[Config], tuple[int, ...]] = lambda config: config.shape[:2]
    maps: int = 1
    operators: tuple[str, ...] = ()
    forward_operators: int = 1
    whole_on: tuple[str, ...] = ()
    not_finite: dict[str, dict[str, Any]] = field(default_factory=dict)
    threads: dict[str, Any] | None = None
    shared_sums: tuple[Config, ...] = ()
    by_hand: tuple[ByHand, ...] = ()
    kernels: tuple[Kernels, ...] = ()
    triton: Triton | None = None
    samples: dict[str, Callable[[Any, int], nn.Module]] = field(default_factory=dict)
    drop_ins: tuple[DropIn, ...] = ()
    errors: dict[str, Error] = field(default_factory=dict)

    @property
    def op(self) -> str:
        return self.name if self.operator is None else self.operator

    def calls(self, backend: str) -> list[str]:
        """The operators of a forward and a backward call."""
        if self.operators and backend not in self.whole_on:
            return list(self.operators)
        return [f"{self.op}_forward", f"{self.op}_backward"]


def name_of(options: dict[str, Any]) -> str:
    """A variant's name, from its options."""
    return "-".join(k if v is True else f"{k}={v}" for k, v in options.items())
