"""Whether a recording is that of an SE or ECA block: pool, layers, gate, multiply; or why not."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import nn

from chattn_cuda.convert import probe
from chattn_cuda.convert.reads import attributes_read, side_effect, unknown_source
from chattn_cuda.convert.recording import (
    CONTAINERS,
    DROPOUTS,
    NEUTRAL,
    RESHAPES,
    Recording,
)
from chattn_cuda.hooks import qualified_name

__all__ = ["NotTaken", "Recipe", "is_own_class", "match", "tree_of", "values_of"]

#: What may be a mean over the positions.
_MEANS = re.compile(r"mean|sum|einsum|(adaptive_)?avg_pool\dd")
_CHAIN = re.compile(r"pool(?:-layer(-norm)?(-act)?)?-layer(-act)?(?:(?:-add)?-mul(?:-add)?)?")
_PREFIX = "it looks like the block, but "


class NotTaken(NamedTuple):
    """Why something that looks like a block is none that can be accelerated."""

    reason: str
    is_gate: bool = False
    """Whether it is but a part: it gives the gate, and does not multiply."""


class Recipe(NamedTuple):
    """Paths of submodules, or "=name" for an activation that is a function; "" for none."""

    pool: str
    first: str
    norm: str
    act: str
    second: str
    gate: str
    residual: str
    kind: str
    """"se" or "eca"."""
    rank: str
    """How many axes the map has."""
    reads: str
    """The module's attributes that the forward reads."""
    settings: str
    """Their values."""
    tree: str
    """All submodules, with the classes of those that are not above."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The submodules that the operators stand for."""
        return self[:6]

    @property
    def is_eca(self) -> bool:
        """Whether the layer is a convolution over the channels."""
        return self.kind == "eca"


def match(module: Any, recordings: list[Recording]) -> Recipe | NotTaken | None:
    """What the block is made of; why it is not taken; or None for what does not look like one.

    What it does in eval mode, and what it does in train mode, must be the same.
    """
    recording = recordings[0]
    events, returned = recording.events, recording.returned
    found: dict[str, list[str]] = {}
    for kind, name in events:
        found.setdefault(kind, []).append(name)
    if "pool" not in found or "layer" not in found:
        return None
    gates = [name for name in found.get("act", []) if _may_gate(module, name)]
    if "mul" not in found and not (returned == "gate" and gates):
        return None
    at = dict(module.named_modules())
    chain = [(k, p) for k, p in events if k in ("pool", "layer", "norm", "act", "mul", "add")]
    kinds = _CHAIN.fullmatch("-".join(kind for kind, _ in chain))
    reason = (
        _why_elsewhere(recording)
        or _why_other_weights(module, found)
        or _why_another_squeeze(at, found)
        or _why_more(found)
        or (None if kinds else f"its forward is {', '.join(kind for kind, _ in chain)}")
        or _why_other_layers(at, found["layer"])
        or _why_other_modules(module, {p for _, p in chain})
        or _why_unknown(module)
        or _why_returned(returned)
        or (None if recordings[-1] == recording else "its forward differs in train mode")
    )
    if reason is not None or kinds is None:
        return NotTaken(f"{_PREFIX}{reason}", is_gate="mul" not in found)
    layers, acts, two = found["layer"], found.get("act", []), len(found["layer"]) == 2
    pool = found["pool"][0]
    pooling: Any = type(at.get(pool))
    reads = ", ".join(_attributes(module))
    recipe = Recipe(
        pool if pooling in probe.POOLS else "",
        layers[0] if two else "",
        found["norm"][0] if kinds[1] else "",
        acts[0] if two and kinds[2] else "=identity",
        layers[-1],
        acts[-1] if kinds[3] else "=identity",
        "residual" if "add" in found else "",
        "eca" if isinstance(at[layers[-1]], nn.Conv1d) else "se",
        str(2 + probe.POOLS.get(pooling, 2)),
        reads,
        values_of(module, reads),
        "",
    )
    return recipe._replace(tree=tree_of(module, recipe.parts[1:]))


def _may_gate(module: Any, name: str) -> bool:
    act = name if name.startswith("=") else type(module.get_submodule(name)).__name__
    return re.search("sigmoid|tanh|softmax", act, re.IGNORECASE) is not None


def _why_elsewhere(recording: Recording) -> str | None:
    """Where the block is, if it is one."""
    kinds = [kind for kind, _ in recording.events]
    if "conv" in kinds[: kinds.index("pool")]:
        return "is part of a larger forward: give it a submodule of its own"
    return None if recording.axes == "NCHW" else "is not for maps (N, C, H, W)"


def _why_other_weights(module: Any, found: dict[str, list[str]]) -> str | None:
    """Weights that are not simply those of a layer."""
    layers, at = found["layer"], dict(module.named_modules())
    own = [name[1:] for name in layers if name.startswith("=")]
    if own:
        return f"{' and '.join(own)} are parameters of its own: make nn.Linear layers of them"
    for name in layers:
        if is_own_class(at[name]):
            return f"{name} is a {type(at[name]).__name__}, not an nn.Linear or 1x1 nn.Conv2d"
        if "weight" not in at[name]._parameters:
            return (
                f"the weight of {name} is computed at every call: make it a parameter "
                "(remove_parametrizations, remove_weight_norm, remove_spectral_norm)"
            )
    for path, m in at.items():
        inside = {name for name in layers if name.startswith(f"{path}.")}
        if path and is_own_class(m) and len(inside) > 1 and len(set(layers) - inside) > 0:
            return f"{path} is a {type(m).__name__} of {len(inside)} layers: merge them into one"
    if len(set(layers)) > 2:
        return f"has {len(set(layers))} layers"
    return None


def _why_another_squeeze(at: dict[str, Any], found: dict[str, list[str]]) -> str | None:
    pools, layers = found["pool"], found["layer"]
    if len(pools) > 1 or len(set(layers)) < len(layers) or len(found.get("mul", [])) > 1:
        return "squeezes or excites more than once"
    pool = at.get(pools[0])
    name = pools[0] if pool is None else type(pool).__name__
    if pool is None and not _MEANS.fullmatch(name):
        return f"squeezes with {name}, not the mean"
    if type(pool) in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool3d):
        eca = isinstance(at[layers[-1]], nn.Conv1d)
        return "is not for maps (N, C, H, W)" if eca else None
    if pool is None or type(pool) is nn.AdaptiveAvgPool2d or is_own_class(pool):
        return None
    if type(pool) is nn.AvgPool2d:
        return "its AvgPool2d has windows of one size: make it nn.AdaptiveAvgPool2d(1)"
    return f"squeezes with {name}, not the mean"


def _why_more(found: dict[str, list[str]]) -> str | None:
    """Operations beside those of the block."""
    if "conv" in found:
        return f"calls {found['conv'][0]} on the map itself"
    if "other" in found:
        name = found["other"][0]
        read = name.startswith("=")
        return f"its forward reads {name[1:]}" if read else f"its forward calls {name.strip('_')}"
    return f"its forward {found['number'][0]}" if "number" in found else None


def _why_other_layers(at: dict[str, Any], layers: list[str]) -> str | None:
    for name in layers:
        layer = at[name]
        if isinstance(layer, nn.Linear):
            continue
        if isinstance(layer, nn.Conv1d):
            if len(layers) > 1 or (layer.in_channels, layer.out_channels) != (1, 1):
                return f"{name} is a Conv1d, not an nn.Linear or 1x1 nn.Conv2d"
            if not _keeps_length(layer):
                return f"{name} has another padding than zeros on both sides, or a stride"
        elif layer.groups != 1:
            return f"{name} is a convolution in {layer.groups} groups"
        elif layer.kernel_size != (1, 1):
            return f"{name} is not a 1x1 convolution"
    return None


def _keeps_length(layer: nn.Conv1d) -> bool:
    k = layer.kernel_size[0]
    settings = layer.padding_mode, layer.padding, layer.stride, layer.dilation
    return k % 2 == 1 and settings == ("zeros", (k // 2,), (1,), (1,))


def _why_other_modules(module: Any, events: set[str]) -> str | None:
    for path, m in module.named_modules():
        if not path:
            continue
        if isinstance(m, DROPOUTS) and m.p > 0:
            return f"{path} drops numbers in training (p={m.p:g})"
        plain = isinstance(m, (*NEUTRAL, *CONTAINERS)) or is_own_class(m)
        if path not in events and (not plain or m._parameters):
            return f"has a {type(m).__name__} in it"
    return None


def _why_unknown(module: Any) -> str | None:
    """What the forward reads that may change without being noticed."""
    for path, m in module.named_modules():
        if path and not is_own_class(m):
            continue
        if (effect := side_effect(type(m))) is not None:
            return f"its forward {effect}"
        unknown = unknown_source(m, type(m), inner=path != "")
        if unknown is not None:
            return f"its forward reads {unknown}"
    for name in _attributes(module):
        if _may_change(module, name):
            return f"its forward reads {name}"
    return None


def _why_returned(returned: str) -> str | None:
    if returned == "gate":
        return "returns the gate: let it return x * gate"
    if returned == "tuple":
        return "returns more than the map: let it return x * gate alone"
    return None if returned == "scaled" else "returns something else than x * gate"


def is_own_class(module: Any) -> bool:
    """Whether its class is none of torch's."""
    return not type(module).__module__.startswith("torch.")


def _attributes(module: Any) -> list[str]:
    return sorted(attributes_read(module, type(module)) - {"training"})


def _may_change(module: Any, name: str) -> bool:
    """Whether an attribute may change in place."""
    value = module.__dict__.get(name)
    try:
        probe.as_key(value)
    except TypeError:
        return True
    return isinstance(value, list) or name in module._buffers


def values_of(module: Any, reads: str) -> str:
    """What is in the attributes ``reads``."""
    return repr([module.__dict__.get(name) for name in reads.split(", ")])


def tree_of(module: Any, parts: tuple[str, ...]) -> str:
    """All submodules; of what is no part the class, and the settings of what only reshapes."""
    found = []
    for path, m in module.named_modules():
        if path:
            cls = "" if path in parts else qualified_name(type(m))
            names = RESHAPES.get(type(m), ())
            found.append(" ".join([path, cls, *(repr(getattr(m, name)) for name in names)]))
    return "; ".join(found)
