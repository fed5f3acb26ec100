"""Blocks around channel attention, whose batch norms run with what follows them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import backends, compiled
from chattn_cuda.explanation import Explanation
from chattn_cuda.functional import why_not_fused
from chattn_cuda.modules import views
from chattn_cuda.modules.batch_norm import BATCH_NORMS
from chattn_cuda.modules.deferred import is_small, smallest
from chattn_cuda.modules.fused import FusedForward
from chattn_cuda.reference import autocast_enabled

__all__ = ["TailForward"]

_widths: dict[int, int] = {}  # by the blocks' id: a WeakKeyDictionary takes six calls


def _width(block: Any) -> int:
    """The channels of its widest norm, when it was first asked for."""
    if (known := _widths.get(id(block))) is not None:
        return known
    norms = (m for m in block.modules() if isinstance(m, BATCH_NORMS))
    width = _widths[id(block)] = max((m.num_features for m in norms), default=0)
    weakref.finalize(block, _widths.pop, id(block), None).atexit = False
    return width


class TailForward(FusedForward):
    """The forward of a block, in which batch norms wait for what follows them."""

    @torch.jit.unused
    def _why_not_fused(self, x: Any, kind: Any = Tensor) -> str | None:
        if compiled.is_exporting():
            return "programs are of plain operations"
        if torch._C._get_tracing_state() is not None or type(x) is not kind or x.dim() != 4:
            return "x is not an ordinary map (N, C, H, W)"
        if torch.compiler.is_compiling():  # where each tail looks whether it is small
            device = x.device.type
            if autocast_enabled(device) and x.dtype != torch.get_autocast_dtype(device):
                return "torch.compile tells no += from +, which give other types under autocast"
        elif is_small(self._backend, x, _width(self)):
            least = smallest(x.device.type) / 2**20
            return f"the layers are faster on maps that are so small, below {least:g} MB"
        if torch._C._are_functorch_transforms_active():
            return "torch.func differentiates the layers"
        if backends.get(backends.select(self.backend, x.device.type, x.dtype)).namespace is None:
            return "no fused backend can run here"
        return why_not_fused(x, (), False)

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The block with fused tails, or None where its layers must run one after the other."""
        if self._why_not_fused(x) is not None:
            return None
        return views.run(self._backend, self, x)

    @torch.jit.unused
    def _fused_or_eager(self, x: Tensor) -> Tensor:
        plain = type(x) is Tensor and torch._C._get_tracing_state() is None and x.dim() == 4
        if plain and not torch.compiler.is_compiling():
            if is_small(self._backend, x, _width(self)):
                return self.eager_forward(x)  # before other questions: small maps wait for the host
        y = self.fused_forward(x)
        return self.eager_forward(x) if y is None else y

    @torch.jit.unused
    def obstacle(self) -> None:
        """None: every call is looked at by itself."""

    @torch.jit.unused
    def explain(self, x: Tensor) -> Explanation:
        """How ``forward(x)`` would run; see `chattn_cuda.explain`."""
        reason = self._why_not_fused(x, type(x))  # which may have no numbers
        if reason is not None:
            return Explanation("tail", "reference", "eager", (reason,))
        backend = backends.select(self.backend, x.device.type, x.dtype)
        notes: list[str] = []
        tensors = [x, *self.parameters()]  # type: ignore[attr-defined]
        for rule, gate in ((compiled.RULE, "without"), (compiled.RULE_OF_TAILS, "with")):
            what = f"a tail {gate} a gate"
            note = compiled.note(self.backend, x.device.type, tensors, rule, what)
            notes += () if note is None or note in notes else (note,)
        if any(isinstance(m, nn.SyncBatchNorm) and m.training for m in self.modules()):  # type: ignore[attr-defined]
            notes.append("under torch.compile a SyncBatchNorm in training runs as its layer")
        reasons = ("its norms run with what follows them",)
        return Explanation("tail", backend, "fused", reasons, notes=tuple(notes))
