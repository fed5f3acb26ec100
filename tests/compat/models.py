"""A small model with a block of every kind that `accelerate` knows."""

from __future__ import annotations

import copy
from typing import Any

import timm
import torch
import torchvision
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, backends
from tests.peers import SELayer, eca_layer

FUSED_NAME = backends.select("auto", "cpu")
FUSED = FUSED_NAME != "reference"
CHANNELS = 16


class Net(nn.Module):
    """(N, 3, H, W) images to (N, 5) numbers."""

    def __init__(self) -> None:
        super().__init__()
        c = CHANNELS
        conv = nn.Conv2d(3, c, 3, padding=1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(c), nn.ReLU())
        self.blocks = nn.Sequential(
            timm.layers.SEModule(c, rd_channels=4),
            SqueezeExcite(c, act_layer=nn.SiLU),
            timm.layers.EcaModule(c),
            nn.Conv2d(c, c, 3, padding=1, groups=c),
            timm.layers.EffectiveSEModule(c, gate_layer="sigmoid"),
            timm.layers.CecaModule(c),
            torchvision.ops.SqueezeExcitation(c, 4),
            SELayer(c),
            eca_layer(c),
            chattn_cuda.SqueezeExcite(c, rd_channels=4),
        )
        self.head = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


BLOCKS = 9  # of them in Net; 8 to accelerate


def pair(**arguments: Any) -> tuple[nn.Module, nn.Module]:
    """An accelerated model, and one that is not, with the same weights."""
    torch.manual_seed(0)
    plain = Net()
    fast = copy.deepcopy(plain)
    report = accelerate(fast, **arguments)
    assert len(report.changed) == BLOCKS - 1 and not report.left
    plain.blocks[-1].backend = "reference"
    return fast, plain


def images(n: int = 2, size: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, size, size, generator=generator).to(dtype)


def step(model: Any, x: Tensor, parameters: Any = None) -> dict[str, Tensor]:
    """The output and all gradients of one training step."""
    for p in parameters or model.parameters():
        p.grad = None
    y = model(x)
    y.float().sin().sum().backward()
    grads = {k: p.grad for k, p in model.named_parameters()}
    assert all(g is not None for g in grads.values())
    return {"output": y.detach(), **grads}


def assert_same(actual: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Equal to float32 rounding, relative to each tensor's largest number."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name, value in expected.items():
            assert_same(actual[name], value, tolerance)
        return
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    scale = float(expected.abs().max().clamp_min(1e-6))
    difference = float((actual - expected).abs().max())
    assert difference <= tolerance * scale, f"{difference} > {tolerance} * {scale}"


def operators_in(graph_module: Any) -> int:
    """Calls of this package's forward operators in a graph, and in those inside it."""
    graphs = [m for m in graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    return sum(t.startswith("chattn_cuda.") and "_forward" in t for t in targets)
