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
from chattn_cuda.convert.adapter import Adapter, methods_called
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward, SqueezeExciteLayers

__all__ = ["PREFIX", "NotTaken", "adapter", "key_of"]

PREFIX = "as recorded: "
_LAYERS = (nn.Linear, nn.Conv2d)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_NEUTRAL = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)
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
"""What was seen, by class; there by configuration and methods."""


def key_of(module: Any) -> str | NotTaken | None:
    """The key of an SE block; why it is not taken; or None for what does not look like one."""
    if not _may_be(module):
        return None
    cls = type(module)
    try:
        methods = tuple(weakref.ref(getattr(cls, name)) for name in methods_called(cls))
    except TypeError:  # no functions
        return None
    seen, configuration = _SEEN.setdefault(cls, {}), probe.configuration(module)
    if configuration is None:
        return _key_of(module)
    if (configuration, methods) not in seen:
        seen[configuration, methods] = _key_of(module)
    return seen[configuration, methods]


def _key_of(module: Any) -> str | NotTaken | None:
    try:
        events = _record(module)
    except Exception as error:
        if re.search(r"squeeze|excit|^se([A-Z_]|$)|SE[A-Z]|SE$", type(module).__name__):
            return NotTaken(f"it is called like a block, but fails on a small map: {error}")
        return None
    kinds = [kind for kind, _ in events]
    if "pool" not in kinds or "mul" not in kinds or "layer" not in kinds:
        return None
    recipe = _match(module, events)
    return recipe if isinstance(recipe, NotTaken) else PREFIX + "\n".join(recipe)


def _may_be(module: Any) -> bool:
    """Whether it holds one or two layers, from C numbers to C, and nothing else with weights."""
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
        if kind is not None and not self.inside:
            self.events.append(("act", kind) if kind.startswith("=") else (kind, ""))
        return func(*args, **(kwargs or {}))


def _record(module: Any) -> list[tuple[str, str]]:
    with probe.undisturbed():
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
    codes = (getattr(getattr(cls, name), "__code__", None) for name in methods_called(cls))
    read = {name for code in codes if code is not None for name in code.co_names}
    own = {
        name: module.__dict__[name]
        for name in sorted(read - {"training"})
        if name in module.__dict__
    }
    for name, value in own.items():
        try:
            probe.as_key(value)
        except TypeError:
            return NotTaken(f"it looks like the block, but its forward reads {name}")
    return ", ".join(own), repr([*own.values()])


def _tree(module: Any) -> str:
    return ", ".join(path for path, _ in module.named_modules() if path)


@functools.cache
def adapter(key: str) -> Adapter:
    """The adapter of a key that `key_of` made."""
    recipe = _Recipe(*key.removeprefix(PREFIX).split("\n"))
    body = {"_recipe": recipe, "_reads": tuple(filter(None, recipe.reads.split(", ")))}
    mixin: Any = type("_RecordedForward", (_RecordedForward,), body)
    return Adapter(mixin, lambda module: _layers(recipe, module, type(module)).why_never_fused())


def _layers(recipe: _Recipe, module: Any, cls: Any) -> SqueezeExciteLayers:
    changed = "its submodules or settings are others than when it was accelerated"
    nothing = SqueezeExciteLayers(None, None, "identity", None, "identity", changed=changed)
    if _tree(module) != recipe.tree or _settings(module, cls) != (recipe.reads, recipe.settings):
        return nothing
    at = dict(module.named_modules())
    parts: list[Any] = [at.get(path or None) for path in recipe[:6]]
    others = [m for m in module.modules() if m is not module and all(m is not p for p in parts)]
    if not all(type(m) in (*_NEUTRAL, *_CONTAINERS) for m in others):
        return nothing
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
    def fused_layers(self) -> SqueezeExciteLayers:
        return _layers(self._recipe, self, self._accelerated_from)

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor | None:
        y = super().fused_forward(x)
        return x + y if self._recipe.residual and y is not None else y
