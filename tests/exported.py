"""Modules and functions of every kind, with inputs, for tests of graphs that others make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import accelerate, functional, modules

C, SHAPE = 8, (2, 8, 6, 5)


class Function(nn.Module):
    """A function of this package behind a layer, with parameters of its own."""

    def __init__(self, name: str, *shapes: tuple[int, ...] | None, **keywords: Any) -> None:
        super().__init__()
        self.name, self.keywords = name, keywords
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(s)) for s in shapes if s)
        self.given = [s is not None for s in shapes]
        self.backend = "auto"

    def forward(self, x: Tensor) -> Tensor:
        weights = iter(self.weights)
        args = [next(weights) if given else None for given in self.given]
        function = getattr(functional, self.name)
        maps = [x, x.cos()] if self.name == "selective_kernel" else x
        y: Tensor = function(maps, *args, backend=self.backend, **self.keywords)
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


def _functions() -> dict[str, Callable[[], nn.Module]]:
    se, conv = ((2, C), (2,), (C, 2), (C,)), (1, 1, 3)
    circular = {"padding_mode": "circular"}
    return {
        "squeeze_excite": lambda: Function("squeeze_excite", *se),
        "squeeze_excite without biases": lambda: Function(
            "squeeze_excite", se[0], None, se[2], None, act="silu"
        ),
        "squeeze_excite with a maximum": lambda: Function("squeeze_excite", *se, add_maxpool=True),
        "effective_squeeze_excite": lambda: Function("effective_squeeze_excite", (C, C), (C,)),
        "squeeze_excite_scale_bias": lambda: Function(
            "squeeze_excite_scale_bias", *se[:2], (2 * C, 2), (2 * C,)
        ),
        "efficient_channel_attention": lambda: Function("efficient_channel_attention", conv),
        "efficient_channel_attention circular": lambda: Function(
            "efficient_channel_attention", (C, 1, 5), **circular
        ),
        "selective_kernel": lambda: Function("selective_kernel", *se[:2], (2 * C, 2), None),
    }


def _modules() -> dict[str, Callable[[], nn.Module]]:
    cl = modules.SqueezeExciteCl
    return {
        "SqueezeExcite": lambda: modules.SqueezeExcite(C, rd_channels=2),
        "SqueezeExcite with a norm": lambda: modules.SqueezeExcite(
            C, rd_channels=2, norm_layer=nn.BatchNorm2d
        ),
        "SqueezeExciteCl": lambda: Last(cl(C, rd_channels=2)),
        "SqueezeExciteScaleBias": lambda: modules.SqueezeExciteScaleBias(C, 2),
        "EffectiveSqueezeExcite": lambda: modules.EffectiveSqueezeExcite(C),
        "GatherExcite": lambda: modules.GatherExcite(C, rd_channels=2),
        "SpatialChannelSqueezeExcite": lambda: modules.SpatialChannelSqueezeExcite(C, 4),
        "EfficientChannelAttention": lambda: modules.EfficientChannelAttention(C),
        "CircularEfficientChannelAttention": lambda: modules.CircularEfficientChannelAttention(C),
        "EfficientChannelAttentionNS": lambda: modules.EfficientChannelAttentionNS(C),
        "SelectiveKernel": lambda: modules.SelectiveKernel(C),
        "SelectiveKernelAttn": lambda: Stacked(modules.SelectiveKernelAttn(C, attn_channels=4)),
        "SplitAttn": lambda: modules.SplitAttn(C, norm_layer=nn.BatchNorm2d),
    }


def _accelerated() -> dict[str, Callable[[], nn.Module]]:
    """Classes of timm and torchvision, not accelerated yet."""
    found: dict[str, Callable[[], nn.Module]] = {}
    try:
        import timm
        from timm.models._efficientnet_blocks import SqueezeExcite
    except ImportError:
        return found
    layers = timm.layers
    found = {
        "timm SEModule": lambda: layers.SEModule(C, rd_channels=2),
        "timm efficientnet SqueezeExcite": lambda: SqueezeExcite(C, act_layer=nn.SiLU),
        "timm SqueezeExciteCl": lambda: Last(layers.squeeze_excite.SqueezeExciteCl(C)),
        "timm EffectiveSEModule": lambda: layers.EffectiveSEModule(C),
        "timm EcaModule": lambda: layers.EcaModule(C),
        "timm CecaModule": lambda: layers.CecaModule(C),
        "timm SelectiveKernel": lambda: layers.SelectiveKernel(C),
        "timm SelectiveKernelAttn": lambda: Stacked(
            layers.selective_kernel.SelectiveKernelAttn(C, attn_channels=4)
        ),
        "timm SplitAttn": lambda: layers.SplitAttn(C, norm_layer=nn.BatchNorm2d),
    }
    try:
        from torchvision.ops import SqueezeExcitation
    except ImportError:
        return found
    return {**found, "torchvision SqueezeExcitation": lambda: SqueezeExcitation(C, 2)}


FUNCTIONS, MODULES, ACCELERATED = _functions(), _modules(), _accelerated()
EVERY = {**FUNCTIONS, **MODULES, **ACCELERATED}
#: one of each block
BLOCKS = ("timm SEModule", "timm EcaModule", "timm SelectiveKernel", "timm SplitAttn")
#: what the kernels have no operators for
PLAIN = (
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
