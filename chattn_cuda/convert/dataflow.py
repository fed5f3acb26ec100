"""SE blocks that are known by what they do: a forward is recorded on a small map.

Pool, one or two layers, gate, multiply, whatever the names and whoever wrote the class; with a
residual (x + x * s), too. `key_of` makes a key of what it saw, and `adapter` an adapter of a key:
what the block computes is then tried out (`probe`), as for every structure.
"""

from __future__ import annotations

import functools
import re
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chattn_cuda import activations
from chattn_cuda.convert import probe
from chattn_cuda.convert.adapter import Adapter
from chattn_cuda.convert.reads import attributes_read, unknown_source
from chattn_cuda.functional import Decision
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward, SqueezeExciteLayers

__all__ = ["PREFIX", "NotTaken", "adapter", "key_of", "reads_nothing"]

PREFIX = "as recorded: "
_LAYERS = (nn.Linear, nn.Conv2d)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_DROPOUTS = (nn.Dropout, nn.Dropout2d)
_RESHAPES: dict[type, tuple[str, ...]] = {
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Unflatten: ("dim", "unflattened_size"),
}
_NEUTRAL = (nn.Identity, *_RESHAPES, *_DROPOUTS)
_CONTAINERS = (nn.Sequential, nn.ModuleList)
_MOST = 12  # submodules of a block

_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys(
        (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.avg_pool1d,
         F.avg_pool2d, F.avg_pool3d, torch.mean, Tensor.mean), "pool"
    ),
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d, torch.matmul), "layer"),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__,
                     Tensor.__imul__), "mul"),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__,
                     Tensor.__iadd__), "add"),
    **dict.fromkeys((F.batch_norm, F.layer_norm, F.group_norm), "norm"),
    **dict.fromkeys((torch.relu_, Tensor.relu, Tensor.relu_), "=relu"),
    **dict.fromkeys((Tensor.sigmoid, Tensor.sigmoid_, torch.sigmoid_), "=sigmoid"),
    **dict.fromkeys((Tensor.tanh, Tensor.tanh_), "=tanh"),
    **{function: f"={name}" for function, name in activations._FUNCTIONS.items()},
}  # fmt: skip


#: What changes no number of its input.
_REARRANGING = frozenset(
    """
    view view_as reshape reshape_as flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ t
    permute transpose movedim moveaxis swapaxes swapdims expand expand_as broadcast_to contiguous
    clone to type type_as float double dropout dropout2d __getitem__
    """.split()
)


class NotTaken(NamedTuple):
    """Why something that looks like a block is none that can be accelerated."""

    reason: str


class _Recipe(NamedTuple):
    """Paths of submodules, or "=name" for an activation that is a function; "" for none."""

    pool: str
    first: str
    norm: str
    act: str
    second: str
    gate: str
    residual: str
    reads: str
    """The module's attributes that the forward reads."""
    settings: str
    """Their values."""
    tree: str
    """All submodules."""


_SEEN: weakref.WeakKeyDictionary[Any, dict[Any, str | NotTaken | None]] = (
    weakref.WeakKeyDictionary()
)
"""What was seen, by class; there by configuration."""


def key_of(module: Any) -> str | NotTaken | None:
    """The key of an SE block; why it is not taken; or None for what does not look like one."""
    if not _may_be(module):
        return None
    if probe.is_lazy(module):
        return NotTaken(probe.LAZY) if _is_called_like_one(module) else None
    seen, configuration = _SEEN.setdefault(type(module), {}), probe.configuration(module)
    if configuration is None:
        return _key_of(module)
    if configuration not in seen:
        seen[configuration] = _key_of(module)
    return seen[configuration]


def _key_of(module: Any) -> str | NotTaken | None:
    try:
        events = _record(module)
    except Exception as error:
        if _is_called_like_one(module):
            return NotTaken(f"it is called like a block, but fails on a small map: {error}")
        return None
    kinds = [kind for kind, _ in events]
    if "pool" not in kinds or "mul" not in kinds or "layer" not in kinds:
        return None
    recipe = _match(module, events)
    return recipe if isinstance(recipe, NotTaken) else PREFIX + "\n".join(recipe)


def _is_called_like_one(module: Any) -> bool:
    name = type(module).__name__
    return re.search(r"squeeze|excit|^se([A-Z_]|$)|SE[A-Z]|SE$", name) is not None


def _may_be(module: Any) -> bool:
    """Whether it holds one or two layers, from C numbers to C, and nothing else with weights.

    Of layers whose sizes the first call decides, that is not known: these may be.
    """
    if type(module).__module__.startswith("torch.nn.") or not 0 < len(module._modules) <= _MOST:
        return False
    layers = []
    for i, m in enumerate(module.modules()):
        if i > _MOST:
            return False
        if isinstance(m, _LAYERS):
            if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1):
                return False
            layers.append(m)
        elif m._parameters and not isinstance(m, (*_NORMS, nn.PReLU)):
            return False
    if not 1 <= len(layers) <= 2 or module._parameters:
        return False
    if probe.is_lazy(module):
        return True
    return bool(layers[0].weight.shape[1:2] == layers[-1].weight.shape[:1])


class _Recorder(TorchFunctionMode):
    """Keeps what is called: the kind, and where in the module."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.events: list[tuple[str, str]] = []
        self.inside = 0  # calls of leaves
        self.handles = []
        for path, m in module.named_modules():
            if path and not isinstance(m, _CONTAINERS) and not m._modules:
                self.handles.append(
                    m.register_forward_pre_hook(functools.partial(self.enter, path))
                )
                self.handles.append(m.register_forward_hook(self.leave))

    def enter(self, path: str, module: Any, inputs: Any) -> None:
        kind = "act"
        for types, name in (
            (_LAYERS, "layer"), (_NORMS, "norm"), (_POOLS, "pool"), (_NEUTRAL, "neutral"),
        ):  # fmt: skip
            kind = name if isinstance(module, types) else kind
        self.inside += 1
        self.events.append((kind, path))

    def leave(self, module: Any, inputs: Any, outputs: Any) -> None:
        self.inside -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _FUNCTIONS.get(func)
        result = func(*args, **(kwargs or {}))
        if self.inside:
            return result
        if kind is not None:
            self.events.append(("act", kind) if kind.startswith("=") else (kind, ""))
        elif isinstance(result, Tensor):  # other results are sizes and types
            name = getattr(func, "__name__", repr(func))
            if name == "__get__":  # a property: T, data, ...
                name = func.__self__.__name__
            if name not in _REARRANGING:
                self.events.append(("other", name))
        return result


@probe.undisturbed
def _record(module: Any) -> list[tuple[str, str]]:
    copy = probe.plain_copy(module).eval()
    layer = next(m for m in copy.modules() if isinstance(m, _LAYERS))
    x = torch.randn(2, layer.weight.shape[1], *probe.sizes(copy)[0], dtype=torch.float64)
    with torch.no_grad(), _Recorder(copy) as recorder:
        copy(x)
    return recorder.events


def _match(module: Any, events: list[tuple[str, str]]) -> _Recipe | NotTaken:
    found = {kind: [path for k, path in events if k == kind] for kind in dict(events)}
    layers, pools = found["layer"], found["pool"]
    if len(pools) > 1 or len(set(layers)) < len(layers):
        return NotTaken("it looks like the block, but squeezes or excites more than once")
    chain = [(k, p) for k, p in events if k in ("pool", "layer", "norm", "act")]
    kinds = "-".join(kind for kind, _ in chain)
    pattern = re.fullmatch(r"pool(?:-layer(-norm)?(-act)?)?-layer-act", kinds)
    if pattern is None or "" in layers:
        return NotTaken(f"it looks like the block, but its forward is {kinds.replace('-', ', ')}")
    if "other" in found:
        return NotTaken(f"it looks like the block, but its forward calls {found['other'][0]}")
    known = (*_LAYERS, *_NEUTRAL, *_CONTAINERS)
    for path, m in module.named_modules():
        if path and path not in dict((p, k) for k, p in chain) and type(m) not in known:
            return NotTaken(f"it looks like the block, but has a {type(m).__name__} in it")
    if pools[0] and not isinstance(module.get_submodule(pools[0]), nn.AdaptiveAvgPool2d):
        return NotTaken("it looks like the block, but is not for maps (N, C, H, W)")
    two = len(layers) == 2
    settings = _settings(module, type(module))
    if isinstance(settings, NotTaken):
        return settings
    reads, values = settings
    return _Recipe(
        pools[0],
        layers[0] if two else "",
        found["norm"][0] if pattern[1] else "",
        (found["act"][0] if pattern[2] else "=identity") if two else "=identity",
        layers[-1],
        found["act"][-1],
        "residual" if "add" in found else "",
        reads,
        values,
        _tree(module),
    )


def _settings(module: Any, cls: Any) -> tuple[str, str] | NotTaken:
    """The module's own attributes that the forward reads, and their values, which may change."""
    unknown = unknown_source(module, cls)
    if unknown is not None:
        return NotTaken(f"it looks like the block, but its forward reads {unknown}")
    names = sorted(attributes_read(module, cls) - {"training"})
    for name in names:
        if _may_change_in_place(module, name):
            return NotTaken(f"it looks like the block, but its forward reads {name}")
    reads = ", ".join(names)
    return reads, _values(module, reads)


def _may_change_in_place(module: Any, name: str) -> bool:
    value = module.__dict__.get(name)
    try:
        probe.as_key(value)
    except TypeError:
        return True
    return isinstance(value, list) or name in module._buffers


def _values(module: Any, reads: str) -> str:
    return repr([module.__dict__.get(name) for name in reads.split(", ")])


def reads_nothing(module: Any, cls: Any) -> bool:
    """Whether the forward reads its input and submodules alone."""
    settings = _settings(module, cls)
    return not isinstance(settings, NotTaken) and not settings[0]


def _tree(module: Any) -> str:
    """All submodules, with the settings of those that only reshape."""
    found = []
    for path, m in module.named_modules():
        names = _RESHAPES.get(type(m), ())
        found += [" ".join([path, *(repr(getattr(m, name)) for name in names)])] if path else []
    return ", ".join(found)


@functools.cache
def adapter(key: str) -> Adapter:
    """The adapter of a key that `key_of` made."""
    recipe = _Recipe(*key.removeprefix(PREFIX).split("\n"))
    body = {"_recipe": recipe, "_reads": tuple(filter(None, recipe.reads.split(", ")))}
    mixin: Any = type("_RecordedForward", (_RecordedForward,), body)
    return Adapter(mixin, lambda module: _layers(recipe, module).why_never_fused())


def _layers(recipe: _Recipe, module: Any) -> SqueezeExciteLayers:
    changed = "its submodules or settings are others than when it was accelerated"
    nothing = SqueezeExciteLayers(None, None, "identity", None, "identity", changed=changed)
    if _tree(module) != recipe.tree or _values(module, recipe.reads) != recipe.settings:
        return nothing
    at = dict(module.named_modules())
    parts: list[Any] = [at.get(path or None) for path in recipe[:6]]
    others = [m for m in module.modules() if m is not module and all(m is not p for p in parts)]
    for m in others:
        if type(m) not in (*_NEUTRAL, *_CONTAINERS):
            return nothing
        if type(m) in _DROPOUTS and m.training and m.p > 0:
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


class _RecordedForward(SqueezeExciteForward):
    """SE over the submodules that a recording has shown."""

    if TYPE_CHECKING:
        eager_forward: Any
        _accelerated_from: Any

    _recipe: Any = None

    @torch.jit.unused
    def _fused_or_eager(self, x: Tensor) -> Tensor:
        """The own forward may take anything; it was recorded on a map."""
        if isinstance(x, Tensor) and x.dim() == 4:
            return super()._fused_or_eager(x)
        return self.eager_forward(x)

    @torch.jit.unused
    def decide(self, x: Tensor) -> Decision:
        """What ``forward(x)`` comes to."""
        if x.dim() == 4:
            return super().decide(x)
        found = "x is not a map (N, C, H, W)"
        return Decision(self._block, self.backend, x, found, fallback="eager")

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        return _layers(self._recipe, self)

    @torch.jit.unused
    def _complete(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y if self._recipe.residual else y
