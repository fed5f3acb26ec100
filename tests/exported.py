"""Modules and functions of every kind, with inputs, for tests of graphs that others make."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import accelerate, functional, modules, peers
from chattn_cuda.modules.fused import FusedForward
from tests import cases

#: Of the libraries that are there.
PEERS = [peer for peer in peers.PEERS if importlib.util.find_spec(peer.library) is not None]
C, SHAPE = 8, (2, 8, 6, 5)


class Function(nn.Module):
    """A function of this package behind a layer, with parameters of its own, by their names."""

    def __init__(
        self, function: Callable[..., Any], *shapes: tuple[int, ...] | None, **keywords: Any
    ) -> None:
        super().__init__()
        self.function, self.keywords = function, keywords
        _, *names = inspect.signature(function).parameters
        self.names = names[: len(shapes)]
        for name, shape in zip(self.names, shapes, strict=True):
            self.register_parameter(name, nn.Parameter(torch.randn(shape)) if shape else None)
        self.backend = "auto"

    def forward(self, x: Tensor) -> Tensor:
        weights = [getattr(self, name) for name in self.names]
        maps = [x, x.cos()] if self.function is functional.selective_kernel else x
        y: Tensor = self.function(maps, *weights, backend=self.backend, **self.keywords)
        return y


class Stacked(nn.Module):
    """A selective kernel's attention on stacked branches."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor) -> Tensor:
        u = torch.stack([x, x.cos()], 1)
        return (u * self.attn(u)).sum(1)


class Last(nn.Module):
    """A module of channels that come last."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Network(nn.Module):
    """A layer in front of the block, whose gradient comes through it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(C, C, 1), block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.stem(x))


def make(cls: Any, name: str, channels: int) -> nn.Module:
    """An instance of a class of ours or of a peer, for maps of so many channels."""
    own = (block.samples[name] for block in cases.BLOCKS.values() if name in block.samples)
    module: nn.Module = next(own, lambda cls, channels: cls(channels))(cls, channels)
    return module


def channel_dim(module: nn.Module) -> int:
    """Of the maps that a module of ours or of a peer takes: 1 or -1."""
    ours: Any = module if isinstance(module, FusedForward) else accelerate(copy.copy(module)).model
    return ours._channel_dim  # type: ignore[no-any-return]


def _on_maps(cls: Any, name: str) -> nn.Module:
    """The same, for a map (N, C, H, W)."""
    module = make(cls, name, C)
    if name.endswith("KernelAttn"):
        return Stacked(module)
    return Last(module) if channel_dim(module) == -1 else module


def of_one_map() -> list[cases.Block]:
    """The blocks whose functions take a map and weights."""
    return [b for b in cases.BLOCKS.values() if b.function in vars(functional).values()]


def _functions() -> dict[str, Callable[[], nn.Module]]:
    se, f = ((2, C), (2,), (C, 2), (C,)), functional
    return {
        **{b.function.__name__: partial(Function, b.function, *b.weights(C)) for b in of_one_map()},
        "squeeze_excite without biases": lambda: Function(
            f.squeeze_excite, se[0], None, se[2], None, act="silu"
        ),
        "squeeze_excite with a maximum": lambda: Function(f.squeeze_excite, *se, add_maxpool=True),
        "squeeze_excite_scale_bias": lambda: Function(
            f.squeeze_excite_scale_bias, *se[:2], (2 * C, 2), (2 * C,)
        ),
        "efficient_channel_attention circular": lambda: Function(
            f.efficient_channel_attention, (C, 1, 5), padding_mode="circular"
        ),
        "selective_kernel": lambda: Function(f.selective_kernel, *se[:2], (2 * C, 2), None),
    }


def _modules() -> dict[str, Callable[[], nn.Module]]:
    every = {name: getattr(modules, name) for name in modules.__all__}
    return {
        **{
            name: partial(_on_maps, cls, name)
            for name, cls in every.items()
            if isinstance(cls, type) and issubclass(cls, FusedForward)
        },
        "SqueezeExcite with a norm": lambda: modules.SqueezeExcite(C, norm_layer=nn.BatchNorm2d),
    }


def _accelerated() -> dict[str, Callable[[], nn.Module]]:
    """Classes of timm and torchvision, not accelerated yet."""
    return {peer.path: partial(_on_maps, peer.load(), peer.path) for peer in PEERS}


FUNCTIONS, MODULES, ACCELERATED = _functions(), _modules(), _accelerated()
EVERY = {**FUNCTIONS, **MODULES, **ACCELERATED}
#: one of each block: the layers that timm's models are made with
BLOCKS = tuple(peer.path for peer in PEERS if peer.models and ".layers." in peer.path)
#: what the kernels have no operators for
PLAIN = (
    "SEGC",
    "squeeze_excite_scale_bias",
    "SqueezeExciteScaleBias",
    "squeeze_excite with a maximum",
)


def pair(name: str, backend: str = "auto") -> tuple[Network, Network]:
    """A network with the block of that name, by ``backend``, and one in plain PyTorch."""
    torch.manual_seed(0)
    plain = Network(EVERY[name]()).double()
    fast = copy.deepcopy(plain)
    if name in ACCELERATED:
        report = accelerate(fast, backend=backend)
        assert report.changed and not report.left
        return fast, plain
    for network, wanted in ((fast, backend), (plain, "reference")):
        for module in network.modules():
            if hasattr(module, "backend"):
                module.backend = wanted
    return fast, plain


def maps(requires_grad: bool = False) -> Tensor:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.requires_grad_(requires_grad)


def step(network: Any, parameters: Any) -> dict[str, Tensor]:
    """The output and the gradients of the ``parameters``, by name, and of x."""
    x = maps(True)
    y = network(x)
    y.sin().sum().backward()
    found = {"y": y.detach(), "x": x.grad}
    for name, p in parameters:
        found[name], p.grad = p.grad, None
    missing = [name for name, g in found.items() if g is None]
    assert not missing, f"no gradient: {missing}"
    return found


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    assert sorted(actual) == sorted(expected)
    for name, value in expected.items():
        scale = float(value.abs().max().clamp_min(1e-3))
        difference = float((actual[name] - value).abs().max())
        assert difference <= tolerance * scale, f"{name}: {difference}"


def own_operators(graph_module: Any) -> list[str]:
    """This package's operators in a graph."""
    every = [m for m in graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    found = [str(node.target) for m in every for node in m.graph.nodes]
    return [name for name in found if name.startswith("chattn_cuda")]
