"""What every module of the package shares: the backend, and when its own submodules run.

A block's module keeps its parameters in ordinary submodules. Its forward reads their parameters and
runs the fused operators, unless something makes the result differ from calling the submodules: then
it calls them, as the module that it replaces would.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Proxy

from chattn_cuda import backends, compiled, functional, ops, validation
from chattn_cuda.explanation import Explanation
from chattn_cuda.functional import checked
from chattn_cuda.modules import memory
from chattn_cuda.modules.batch_norm import fold_batch_norm
from chattn_cuda.modules.layers import tensors_at

__all__ = [
    "Call",
    "FusedForward",
    "Operands",
    "folds_more_than",
    "must_be_plain",
]


class Call(NamedTuple):
    """What `memory` keeps of a module that ran fused: all but the tensors.

    Attributes:
        block: The operators' block.
        backend: The module's.
        tensors: How many of those that `memory` finds the operators take, from the first; the
            others tell whether the call is still the same.
        constants: The operators' arguments behind the tensors.
        eps: Of a batch norm that is folded into the weights; its four tensors follow them.
        folded: How many weights it is folded into.
        expects: What the layers' settings take, where weights of other sizes would fit the
            operators too.
    """

    block: str
    backend: str
    tensors: int
    constants: tuple[Any, ...]
    eps: float | None = None
    folded: int = 0
    expects: tuple[int, ...] = ()


class Operands(NamedTuple):
    """What the operators take of a module's layers.

    Attributes:
        call: What is called.
        places: Its tensors; behind them those of a norm to fold, and others that it depends on.
        names: Of the tensors that the operators take, in messages.
        channels: C of the map, where it follows from them.
    """

    call: Call
    places: Sequence[memory.Place]
    names: Sequence[str]
    channels: int | None = None


class FusedForward:
    """Mixin in front of an ``nn.Module`` class; a block adds the methods that raise here."""

    __jit_unused_properties__ = ["backend"]
    _backend = "auto"
    _block = ""  # its name in explanations; that of the class where empty
    _any_rank = False  # whether (N, C, L) and (N, C, D, H, W) are taken too
    _eager_any_rank = False  # whether eager_forward takes them, or their view as (N, C, H, W)
    _unbatched = False  # whether eager_forward takes (C, H, W)
    _channel_dim = 1  # or -1
    _reads: tuple[str, ...] = ()  # its attributes, besides the backend, that the result depends on
    _fusible = False  # whether the rule of `chattn_cuda.compiled` is for it
    _complete: Any = None  # a method (x, y): what follows the operators, whose result is y

    @property
    def backend(self) -> str:
        """The backend to use: "auto" or one of `chattn_cuda.backends.names()`.

        Raises:
            ValueError: On setting an unknown name.
        """
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        backends.check_name(name, auto=True)
        self._backend = name

    def forward(self, x: Tensor) -> Tensor:
        """The block on a map (N, C, H, W); y has x's shape, type and memory format."""
        if torch.jit.is_scripting():
            return self.eager_forward(x)
        return self._fused_or_eager(x)

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        raise NotImplementedError

    @torch.jit.unused
    def operands(self) -> Operands | str:
        """What the operators take of the layers as they are now, or why they do not cover them."""
        raise NotImplementedError

    @torch.jit.unused
    def check(self, m: Tensor, tensors: Sequence[Any], names: Sequence[str]) -> None:
        """Raise unless the operators' tensors, called ``names``, fit the map ``m``."""
        raise NotImplementedError

    @torch.jit.unused
    def obstacle(self) -> str | None:
        """Why the operators do not cover this module as it is now; None where they do."""
        found = self.operands()
        return found if isinstance(found, str) else None

    @torch.jit.unused
    def decide(self, x: Tensor) -> functional.Decision:
        """What ``forward(x)`` comes to; its tensors are those of `operands`, a norm's included."""
        found = self.operands()
        decision = self._decide(x, found)
        if decision.uncovered is not None or isinstance(found, str):
            return decision
        return decision._replace(uncovered=why_slower(found.call, decision.x))

    @torch.jit.unused
    def explain(self, x: Tensor) -> Explanation:
        """How ``forward(x)`` would run; see `chattn_cuda.explain`."""
        return self.decide(x).explain()

    @torch.jit.unused
    def _decide(self, x: Tensor, found: Operands | str) -> functional.Decision:
        if self._unbatched and x.dim() == 3:
            x, found = x[None], "x has no axis of samples"
        channels = None if isinstance(found, str) else found.channels
        validation.check_map(x, channels, any_rank=self._any_rank, channel_dim=self._channel_dim)
        m, name = functional.to_map(x, self._channel_dim), self._block or type(self).__name__
        if isinstance(found, str):
            return functional.Decision(name, self.backend, m, found, fallback="eager")
        call = found.call
        tensors = self._tensors(m, found)
        given, others = tensors[: call.tensors], tensors[call.tensors :]
        self.check(m, given, found.names)
        uncovered = functional.why_not_fused(m, given)
        weights = validation.unify_dtypes(m, given, found.names)
        decision = functional.Decision(
            name, self.backend, m, uncovered, call.block, (*weights, *others), call.constants,
            fallback="eager", fusible=self._fusible, as_given=weights is given,
        )  # fmt: skip
        if uncovered is None and self.backend == "auto" and decision.backend == "reference":
            return decision._replace(uncovered="no fused backend can run here")
        return decision

    @torch.jit.unused
    def _tensors(self, m: Tensor, found: Operands) -> list[Any]:
        """The tensors of `operands`, for the map ``m``."""
        return tensors_at(found.places)

    @torch.jit.unused
    def _check_eagerly(self, x: Tensor, obstacle: str) -> None:
        """Raise, in clearer words, where the submodules will, or take what the block does not."""

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The block by the operators, or None where it must run its submodules."""
        y = self._repeat(x)
        return self._fuse(x) if y is None else y

    @torch.jit.unused
    def _fuse(self, x: Tensor) -> Tensor | None:
        """`fused_forward` for a call that may be the first of its kind."""
        found = self.operands()
        if isinstance(found, str):
            if isinstance(x, Tensor):
                backends.select(self.backend, x.device.type)
                self._check_eagerly(x, found)
            return None
        decision = self._decide(x, found)
        if decision.uncovered is not None:
            return None
        m, backend, call = decision.x, decision.backend, found.call
        if decision.as_given and found.places:
            self._remember(m, backend, call, found.places)
        tensors = decision.tensors
        if why_slower(call, m) is not None:
            return None
        if call.eps is not None:
            tensors = fold_batch_norm(call.eps, *tensors)
        y = functional.run(call.block, backend, m, tensors[: call.tensors], call.constants)[0]
        y = y.movedim(1, -1) if self._channel_dim == -1 else y
        return y if self._complete is None else self._complete(x, y)

    @torch.jit.unused
    def _fused_or_eager(self, x: Tensor) -> Tensor:
        y = self._repeat(x)
        if y is not None:
            return y
        if isinstance(x, Proxy):  # nothing may depend on a shape
            return self.eager_forward(x)
        if self._unbatched and isinstance(x, Tensor) and x.dim() == 3:
            return self.eager_forward(x)
        if self._any_rank and isinstance(x, Tensor) and x.dim() in (3, 5):
            return self._on_map(x)
        y = None if self._is_plain(x) else self._fuse(x)
        return self.eager_forward(x) if y is None else y

    @torch.jit.unused
    def _repeat(self, x: Any) -> Tensor | None:
        """Y, where a call like this one was remembered; else None, as in a graph that is made."""
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return None
        call = memory.kept(self)
        if call is None:
            return None
        if isinstance(x, Tensor) and x.dim() == 4:
            has_gaps = self._channel_dim == 1 and not x.is_contiguous() and is_copied_first(call, x)
            if has_gaps or (call.folded > 0 and folds_more_than(call, x)):
                return self.eager_forward(x)
        known = memory.recall(self)
        if known is None:
            return None
        call, tensors = known
        last = self._channel_dim == -1 and isinstance(x, Tensor) and x.dim() == 4
        m = x.movedim(-1, 1) if last else x
        found = checked.find(call, m, tensors)[1]
        if found is None:
            return None
        if call.eps is not None:
            tensors = fold_batch_norm(call.eps, *tensors)
        del tensors[call.tensors :]
        y = ops.apply_eagerly(call.block, found[0], m, *tensors, *found[1])[0]
        y = y.movedim(1, -1) if last else y
        return y if self._complete is None else self._complete(x, y)

    @torch.jit.unused
    def _remember(
        self, m: Tensor, backend: str, call: Call, places: Sequence[memory.Place]
    ) -> None:
        """Let `_repeat` run calls like this one, which passed every check, by ``backend``.

        Args:
            m: The map.
            backend: That takes it as it is.
            call: What is called.
            places: The tensors beside the map.
        """
        if torch.compiler.is_compiling():
            return
        key, _ = checked.find(call, m, tensors_at(places))
        if key is not None:
            checked.remember(key, backend, *call.constants)
            memory.remember(self, places, self._reads, call)

    @torch.jit.unused
    def _is_plain(self, x: Tensor) -> bool:
        """Whether a graph that is being made gets plain operations."""
        if must_be_plain(self._backend):
            return True
        if not torch.compiler.is_compiling() or not self._fusible or not isinstance(x, Tensor):
            return False
        tensors = itertools.chain((x,), self.parameters())  # type: ignore[attr-defined]
        return compiled.takes_formula(self.backend, x.device.type, tensors)

    @torch.jit.unused
    def _on_map(self, x: Tensor) -> Tensor:
        """The block on the four-dimensional view of an ``x`` with three or five axes."""
        last = self._channel_dim == -1
        m = functional.to_map(x, self._channel_dim)
        view = m.movedim(1, -1) if last else m
        try:
            y = None if self._is_plain(x) else self.fused_forward(view)
        except ValueError as error:  # with the shape that the user made
            raise ValueError(
                str(error).replace(f"{tuple(view.shape)}", f"{tuple(x.shape)}")
            ) from None
        if y is None:
            if self._eager_any_rank:
                return self.eager_forward(x)
            y = self.eager_forward(view)
        return functional.from_map(y.movedim(-1, 1) if last else y, x, self._channel_dim)


def folds_more_than(call: Call, m: Tensor) -> bool:
    """Whether a norm is folded into more weights than the map ``m`` has numbers.

    In inference on a CPU, that is, where the layers are faster then.
    """
    if call.folded <= m.numel() or call.backend != "auto":
        return False
    return m.device.type == "cpu" and not torch.is_grad_enabled()


def is_copied_first(call: Call, m: Tensor) -> bool:
    """Whether the map ``m`` has gaps, which the operators copy away.

    In inference on a CPU, that is, where the layers are faster then.
    """
    if call.backend != "auto" or m.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return not m.is_contiguous() and not m.is_contiguous(memory_format=torch.channels_last)


def why_slower(call: Call, m: Tensor) -> str | None:
    """Why the operators, which cover the call, are slower than the layers; else None."""
    if folds_more_than(call, m):
        return "its batch norm would be folded into more weights than the map has numbers"
    return (
        "the map, which is not dense, would be copied first" if is_copied_first(call, m) else None
    )


def must_be_plain(backend: str) -> bool:
    """Whether a graph is made that must not depend on this package: it gets plain operations."""
    if torch._C._get_tracing_state() is not None:
        return True
    return functional.exported_plainly(backend)
