"""SE and ECA blocks that are known by what they do: a forward is recorded on a small map.

Pool, layers, gate, multiply, whatever the names and whoever wrote the class; with a residual
(x + x * s), too. `key_of` makes a key of what it saw, and `adapter` an adapter of a key: what the
block computes is then tried out (`probe`), as for every structure.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from chattn_cuda.convert import candidates, probe
from chattn_cuda.convert.adapter import Adapter
from chattn_cuda.convert.matching import NotTaken, Recipe, match, tree_of, values_of
from chattn_cuda.convert.reads import attributes_read, side_effect, unknown_source
from chattn_cuda.convert.recording import DROPOUTS, record
from chattn_cuda.modules.efficient_channel_attention import EfficientChannelAttentionForward
from chattn_cuda.modules.fused import Operands
from chattn_cuda.modules.own_forward import OwnForward
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward, SqueezeExciteLayers
from chattn_cuda.peers.eca import conv_obstacle

__all__ = ["PREFIX", "NotTaken", "adapter", "key_of", "reads_nothing", "why_more"]

PREFIX = "as recorded: "
_CHANGED = "its submodules or settings are others than when it was accelerated"

_Answer = TypeVar("_Answer")
_SEEN: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
"""What was seen, by class; there by question and configuration."""


def key_of(module: Any) -> str | NotTaken | None:
    """The key of an SE block; why it is not taken; or None for what does not look like one."""
    if not candidates.may_be(module):
        return None
    if probe.is_lazy(module):
        return NotTaken(probe.LAZY) if _is_called_like_one(module) else None
    return _remembered(module, PREFIX, _key_of)


def why_more(module: Any, pattern: str) -> str | None:
    """Why a forward does more than the kinds of events that ``pattern`` has; None: it does not."""
    if not pattern:
        return None
    return _remembered(module, pattern, functools.partial(_why_more, pattern))


def _remembered(module: Any, question: str, answer: Callable[[Any], _Answer]) -> _Answer:
    """``answer(module)``, once for all modules of a class that are configured alike."""
    seen, configuration = _SEEN.setdefault(type(module), {}), probe.configuration(module)
    if configuration is None:
        return answer(module)
    key = question, configuration
    if key not in seen:
        seen[key] = answer(module)
    known: _Answer = seen[key]
    return known


def _why_more(pattern: str, module: Any) -> str | None:
    for recording in record(module):
        kinds = "-".join(kind for kind, _ in recording.events)
        if re.fullmatch(pattern, kinds) is None:
            return f"it is built like the block, but its forward is {kinds.replace('-', ', ')}"
    return None


def _key_of(module: Any) -> str | NotTaken | None:
    try:
        recordings = record(module)
    except Exception as error:
        if _is_called_like_one(module):
            fails = "" if isinstance(error, probe.NoCopy) else "fails on a small map: "
            return NotTaken(f"it is called like a block, but {fails}{error}")
        if "dtype" in str(error):  # it converts types, and is tried out in float64
            return NotTaken(f"it may be a block, but fails on a small map in float64: {error}")
        return None
    recipe = match(module, recordings)
    return PREFIX + "\n".join(recipe) if isinstance(recipe, Recipe) else recipe


def _is_called_like_one(module: Any) -> bool:
    names = " ".join(cls.__name__ for cls in type(module).__mro__)
    return re.search(r"[Ss]queeze|[Ee]xcit|\bse([A-Z_]|\b)|SE([A-Z]|\b)", names) is not None


def reads_nothing(module: Any, cls: Any) -> bool:
    """Whether the forward reads its input and submodules alone, and does nothing else."""
    if side_effect(cls) is not None:
        return False
    return unknown_source(module, cls) is None and not attributes_read(module, cls) - {"training"}


@functools.cache
def adapter(key: str) -> Adapter:
    """The adapter of a key that `key_of` made."""
    recipe = Recipe(*key.removeprefix(PREFIX).split("\n"))
    base = _RecordedEca if recipe.is_eca else _RecordedSe
    reads, other = tuple(filter(None, recipe.reads.split(", "))), recipe.rank != "4"
    body = {"_recipe": recipe, "_reads": reads, "_any_rank": other, "_eager_any_rank": other}
    mixin: Any = type(base.__name__, (base,), body)
    return Adapter(mixin, mixin.obstacle_of)


def _layers(recipe: Recipe, module: Any) -> SqueezeExciteLayers:
    nothing = SqueezeExciteLayers(None, None, "identity", None, "identity", changed=_CHANGED)
    if tree_of(module, recipe.parts[1:]) != recipe.tree:
        return nothing
    if values_of(module, recipe.reads) != recipe.settings:
        return nothing
    at = dict(module.named_modules())
    parts: list[Any] = [at.get(path or None) for path in recipe.parts]
    others = [m for m in module.modules() if m is not module and all(m is not p for p in parts)]
    if any(isinstance(m, DROPOUTS) and m.training and m.p > 0 for m in others):
        return nothing._replace(changed="its dropout drops something")
    pool, first, norm, act, second, gate = parts
    return SqueezeExciteLayers(
        first,
        norm,
        recipe.act[1:] if recipe.act.startswith("=") else act,
        second,
        recipe.gate[1:] if recipe.gate.startswith("=") else gate,
        names=(recipe.first, recipe.second),
        around=tuple(others),
        pool=pool,
    )


class _Recorded(OwnForward):
    """A block over the submodules that a recording has shown, in front of its forward."""

    _recipe: Any = None

    @torch.jit.unused
    def _axes(self) -> int:
        return int(self._recipe.rank)

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        return _layers(self._recipe, self)

    @torch.jit.unused
    def _complete(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y if self._recipe.residual else y


class _RecordedSe(_Recorded, SqueezeExciteForward):
    _block = "SqueezeExcite"

    @classmethod
    def obstacle_of(cls, module: Any) -> str | None:
        return _layers(cls._recipe, module).why_never_fused()


class _RecordedEca(_Recorded, EfficientChannelAttentionForward):
    _block = "EfficientChannelAttention"

    @classmethod
    def obstacle_of(cls, module: Any) -> str | None:
        layers = _layers(cls._recipe, module)
        return conv_obstacle(layers.second, layers.gate)

    @torch.jit.unused
    def operands(self) -> Operands | str:
        return self.fused_layers().why_others_not_fused() or super().operands()

    @torch.jit.unused
    def _conv_module(self) -> Any:
        return self.fused_layers().second

    @torch.jit.unused
    def _gate_module(self) -> Any:
        return self.fused_layers().gate

    @torch.jit.unused
    def _has_mlp(self) -> bool:
        return False

    @torch.jit.unused
    def probe_channels(self) -> int:
        """The weights are for any number: more than they are long."""
        return 16
