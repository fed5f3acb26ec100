"""Batch norms that wait for what follows them, so that both run as one fused tail.

A block's own forward runs with a `views.View` in the place of ``self``. Its batch norms give
`Deferred` maps, which remember what the block does to them: an activation, an attention block,
stochastic depth, an addition, an activation. Whoever needs the values gets them by the fused
operators where those know all of it, else from the layers, one after the other. What a block does
to such a map it does for good: the blocks that are known go on with the result alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chattn_cuda import activations, backends, compiled, functional, ops, reference
from chattn_cuda.functional import checked
from chattn_cuda.modules import memory
from chattn_cuda.modules.batch_norm import BATCH_NORMS
from chattn_cuda.modules.fused import Call
from chattn_cuda.modules.layers import tensors_at
from chattn_cuda.ops.tail import GATES, Gate, Norm, Tail, Together, apply_tail

__all__ = ["SMALLEST", "Deferred", "Drop", "is_small", "smallest", "values"]

SMALLEST = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Bytes of the smallest map, by device type, that a tail reads for `backend="auto"`.

What lies in a processor's caches is read again for nothing; and a GPU that is done before the host
has made its calls gains nothing by fewer passes. On a CPU it is half of that where gradients are
on: a step keeps fewer maps for its backward. docs/tail.md has the figures.
"""

_IDENTITY = 0, 0.0
_CODES = {name: activation.code for name, activation in activations.ACTIVATIONS.items()}
_GELU, _SILU, _SIGMOID, _TANH, _RELU, _RELU6 = map(
    _CODES.get, "gelu silu sigmoid tanh relu relu6".split()
)
_FUSED = {_CODES[name] for name in "hard_swish mish elu gelu_tanh".split()}
_FEW = 16  # channels, whose rows are shorter than a vector
_SUMS = (torch.add, Tensor.add, Tensor.__add__)
_OF_NORM = "weight", "bias", "running_mean", "running_var"


def is_small(backend: str, x: Tensor, channels: int) -> bool:
    """Whether the layers are faster on a map like ``x`` with so many ``channels``."""
    if backend != "auto":
        return False
    least = smallest("cpu" if x.is_cpu else x.device.type)
    return x.numel() * x.element_size() * channels < least * (x.size(1) or 1)


def smallest(device: str) -> int:
    """Bytes of the smallest map that a tail reads here."""
    return SMALLEST.get(device, 0) // (2 if device == "cpu" and torch.is_grad_enabled() else 1)


def values(x: Any) -> Any:
    """``x`` itself, or the values of a deferred map; also of those in a list or tuple."""
    if type(x) is Deferred:
        return x.values()
    return type(x)(map(values, x)) if type(x) in (list, tuple) else x


class Drop(NamedTuple):
    """Stochastic depth of samples: each is kept and scaled, or gone.

    Attributes:
        keep: The probability with which a sample is kept.
        scaled: Whether the others are divided by it.
    """

    keep: float
    scaled: bool

    def factors(self, x: Tensor) -> Tensor:
        """(N, 1, 1, 1) for a map, from the random numbers that the layer would draw."""
        drawn = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(self.keep)
        return drawn.div_(self.keep) if self.scaled and self.keep > 0 else drawn


class Deferred:
    """What a block has done to a map since its batch norm.

    Attributes:
        run: The block's call, a `views.Run`.
        backend: By which to run.
        x: The map in front of the norm.
        norm: The layer.
        group: The processes whose batches belong to the norm's; None for this one's alone.
        inner: The activation behind it, or None.
        gate: The attention block behind that, or None.
        factors: (N, 1, 1, 1) of stochastic depth, or None.
        residual: What was added, or None.
        act: The activation behind that, or None.
    """

    def __init__(self, run: Any, x: Tensor, norm: Any, group: Any = None) -> None:
        """A map ``x`` behind ``norm``: a batch norm without an activation of its own."""
        self.run, self.backend, self.norm, self.group = run, run.backend, norm, group
        if group is not None:
            run.asks(self)
        self.x: Any = x
        self.inner: Any = None
        self.gate: Any = None
        self.factors: Tensor | None = None
        self.residual: Any = None
        self.act: Any = None
        self._y: Tensor | None = None
        self._in_place = False  # whether the residual was added so
        self._operands: tuple[Call | None, list[Any]] = (None, [])  # of the gate

    # ---- what a block does
    def activated(self, layer: Any) -> Any:
        """Behind an activation."""
        if self._y is not None:
            return layer(self._y)
        if self._is_bare:
            if self.inner is None:
                self.inner = layer
                return self
            return layer(self.values())
        self.act = layer
        return self.values()

    def gated(self, layer: Any) -> Any:
        """Behind an attention block."""
        if self._y is not None or not self._is_bare or self._is_small:
            return self.run.layer(layer, self)
        if (found := self._gate_of(layer)) is None:
            return self.run.layer(layer, self)
        self.gate, self._operands = layer, found
        return self

    def dropped(self, layer: Any, drop: Drop) -> Any:
        """Behind stochastic depth."""
        if self._y is not None or self.factors is not None or self.residual is not None:
            return layer(self.values())
        if self.inner is not None and self.gate is None:  # of a block without attention
            return layer(self.values())
        self.factors = drop.factors(self.x)
        return self

    def added(self, other: Any) -> Any:
        """With a residual."""
        if self._is_given_to(other):
            return other
        other = values(other)
        return self if self._takes(other) else self.values() + other

    __add__ = __radd__ = added

    def __iadd__(self, other: Any) -> Any:  # type: ignore[misc]  # where it is another map
        """`added`, but of the map's type."""
        if self._is_given_to(other):
            return other
        other = values(other)
        if self._takes(other):
            self._in_place = True
            return self
        y = self.values()
        y += other
        return y

    def _is_given_to(self, other: Any) -> bool:
        """Be the residual of a map whose norm asked other processes later."""
        later = self._y is not None and type(other) is Deferred and other.group is not None
        return later and other._takes(self._y)

    def _takes(self, other: Any) -> bool:
        """Take a residual that the operators can add."""
        x = self.x
        if self._y is not None or self.residual is not None or type(other) is not Tensor:
            return False
        if other.shape != x.shape or other.dtype != x.dtype or other.device != x.device:
            return False
        self.residual = other
        return True

    @property
    def _is_bare(self) -> bool:
        """Whether nothing is behind the inner activation."""
        return self.gate is None and self.factors is None and self.residual is None

    @property
    def _is_small(self) -> bool:
        """Whether its layers are faster: then nobody asks for the gate's operands."""
        return is_small(self.backend, self.x, self.x.shape[1])

    def __getattr__(self, name: str) -> Any:
        """That of the values."""
        return getattr(self.values(), name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Functions of torch get the values; a sum with a map is one that waits."""
        if function in _SUMS and len(args) == 2 and not kwargs and type(args[1]) is cls:
            return args[1].added(args[0])
        return function(*map(values, args), **{k: values(v) for k, v in (kwargs or {}).items()})

    # ---- and what comes of it
    def values(self) -> Tensor:
        """The map itself."""
        if self._y is None:
            y = self._fused()
            self._y = self._by_layers() if y is None else y
            self.x = self.residual = None  # whose memory may serve what comes next
        return self._y

    def _by_layers(self) -> Tensor:
        y, self.x = normalised(self.norm, self.x), None
        for layer in (self.inner, self.gate):
            y = y if layer is None else layer(y)
        if self.factors is not None:
            y = y * self.factors
        if self._in_place:
            y += self.residual
        elif self.residual is not None:
            y = y + self.residual
        return y if self.act is None else self.act(y)

    def _fused(self) -> Tensor | None:
        x, norm = self.x, self.norm
        if self._is_small:
            return None
        call, of_gate = self._operands
        own, buffers = norm._parameters, norm._buffers
        try:
            of_norm = [own[n] if n in own else buffers[n] for n in _OF_NORM]
        except KeyError:  # somebody put something else there
            return None
        weight, bias, mean, var = of_norm
        of_batch = norm.training or (mean is None and var is None)
        count = x.numel() // x.shape[1] if x.shape[1] > 0 else 0
        least = 0 if self.group is not None else 2 if of_batch else 1
        if count < least or (not of_batch and (mean is None or var is None)):
            return None  # for which the layer has an error
        tensors = (x, self.residual, *of_norm, *of_gate)
        in_graph = torch.compiler.is_compiling()  # for which `compiled` has a rule of its own
        is_bare, is_plain = self._is_bare, self.gate is None and self.factors is None
        if self.backend == "auto" and not in_graph and (is_bare or is_plain and self.inner is None):
            last = _code(self.inner if is_bare else self.act)[0]
            if _layers_are_faster(x, last, of_batch, tensors, is_bare):
                return None
        rule = compiled.RULE if call is None else compiled.RULE_OF_TAILS
        if compiled.takes_formula(self.backend, x.device.type, tensors, rule):
            return None
        key, found = None, None
        if not in_graph:
            key, found = checked.find(("tail", self.backend, call), x, (*of_norm, *of_gate))
        if found is None:
            backend = self._backend_for(of_norm, of_gate)
            namespace = backends.get(backend).namespace
            if namespace is None:
                return None
            checked.remember(key, backend)
        else:
            namespace = found[0]
        inner, act = _code(self.inner), _code(self.act)
        if self._is_bare:  # a norm and an activation
            inner, act = _IDENTITY, inner
        factors = self.factors
        if factors is not None:
            factors = factors.view(-1, 1).to(reference.accumulation_dtype(x.dtype))
        statistics = Norm(None, None, norm.eps) if of_batch else Norm(mean, var, norm.eps)
        if self.group is not None:
            statistics.together = Together(self.group)
        follows = norm.training and norm.track_running_stats and mean is not None
        if follows and not in_graph:
            _let_follow(norm, statistics)
        gate = None if call is None else Gate(call.block, call.constants)
        tail = Tail(statistics, gate, inner, act, factors)
        y, *measured = apply_tail(namespace, tail, x, self.residual, weight, bias, *of_gate)
        if follows and in_graph:
            _update(norm, count, *measured)
        return y

    def _gate_of(self, layer: Any) -> tuple[Call, list[Any]] | None:
        """An attention block's call and tensors; None where the operators do not cover it."""
        known = None if torch.compiler.is_compiling() else memory.recall(layer)
        if known is None:
            found = layer.operands()
            if isinstance(found, str) or not found.places:  # or they depend on the map
                return None
            if not torch.compiler.is_compiling():
                memory.remember(layer, found.places, layer._reads, found.call)
            known = found.call, tensors_at(found.places)
        call, tensors = known
        if call.eps is not None or call.block not in GATES or call.backend != self.backend:
            return None
        return call, tensors[: call.tensors]

    def _backend_for(self, of_norm: Sequence[Any], of_gate: Sequence[Any]) -> str:
        """The backend that takes these tensors."""
        x, gate = self.x, self.gate
        if not _fit(x, of_norm) or functional.why_not_fused(x, (*of_norm, *of_gate)) is not None:
            return "reference"
        if gate is not None:
            gate.check(x, of_gate, gate.operands().names)
        return backends.select(self.backend, x.device.type, x.dtype)


def _by_values(name: str) -> Any:
    def method(self: Deferred, *args: Any) -> Any:
        return getattr(self.values(), name)(*map(values, args))

    return method


for _name in ("getitem", "mul", "rmul", "sub", "rsub", "truediv", "neg", "len"):
    setattr(Deferred, f"__{_name}__", _by_values(f"__{_name}__"))


def _layers_are_faster(
    x: Tensor, act: int, of_batch: bool, tensors: Sequence[Tensor | None], is_bare: bool
) -> bool:
    """Whether they are on a CPU, for a norm without attention; see docs/tail.md."""
    if x.device.type != "cpu":
        return False
    rows, is_wide = ops.memory_format_of(x) == torch.channels_last, x.element_size() > 2
    least = SMALLEST.get("cpu", 0)
    if not is_bare:  # a residual behind it
        few_bytes = x.numel() * x.element_size() < 2 * least
        return rows and few_bytes and act in (_RELU, _RELU6) and compiled.has_gradients(tensors)
    if act == _GELU or (rows and x.shape[1] < _FEW):
        return True
    if act in _FUSED:
        return False
    if not compiled.has_gradients(tensors):
        return act == _IDENTITY[0]
    if not rows:
        return not is_wide and act in (_SIGMOID, _TANH)
    if act in (_RELU, _RELU6):  # the layers keep no map more: time alone counts
        if x.numel() * x.element_size() < least:
            return True
    if act in (_RELU, _RELU6, _SILU):
        return not (is_wide or of_batch)
    return not is_wide or act in (_IDENTITY[0], _SIGMOID)


def _fit(x: Tensor, of_norm: Sequence[Any]) -> bool:
    """Whether the operators take a norm's tensors for the map ``x``."""
    if x.dim() != 4 or not x.is_floating_point():
        return False
    types = (x.dtype, reference.accumulation_dtype(x.dtype))
    for t in of_norm:
        if t is None:
            continue
        if t.dtype not in types or t.device != x.device or len(t) != x.shape[1]:
            return False
        if not t.is_contiguous():  # running statistics are changed where they lie
            return False
    return True


def normalised(norm: Any, x: Tensor) -> Tensor:
    """``x`` behind a norm, without the activation that it may have."""
    kind: Any
    for kind in BATCH_NORMS:
        if isinstance(norm, kind) and type(norm).forward is not kind.forward:
            return kind.forward(norm, x)  # type: ignore[no-any-return]
    return norm(x)


def _let_follow(norm: Any, statistics: Norm) -> None:
    """Have a tail update the running statistics, before it saves: checkpoints stop there."""
    buffers, momentum = norm._buffers, norm.momentum
    statistics.running = [buffers["running_mean"], buffers["running_var"]]
    if (tracked := buffers["num_batches_tracked"]) is None:
        momentum = momentum or 0.0
    elif momentum is None:
        momentum = 1.0 / float(tracked.add_(1))
    else:
        statistics.running.append(tracked)
    statistics.momentum = momentum


def _update(norm: Any, count: int, mean: Any, var: Any) -> None:
    """The running statistics by operations of a graph, from ``count`` positions of a channel."""
    buffers, momentum = norm._buffers, norm.momentum
    if (tracked := buffers["num_batches_tracked"]) is not None:
        tracked.add_(1)
        momentum = tracked.reciprocal() if momentum is None else momentum
    for name, of_batch in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
        running = buffers[name]
        if isinstance(momentum, Tensor):
            momentum = momentum.to(running.dtype)
        running.lerp_(of_batch.to(running.dtype), 0.0 if momentum is None else momentum)


def _code(layer: Any) -> tuple[int, float]:
    found = None if layer is None else activations.of_layer(layer)
    return _IDENTITY if found is None else (found[0].code, found[1])
