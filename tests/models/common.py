"""What the tests of the networks share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import models
from chattn_cuda.modules.fused import FusedForward
from chattn_cuda.modules.selective_kernel import SelectiveKernelAttnForward

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

SENETS = ("se_resnet50", "se_resnet101", "se_resnet152", "se_resnext50", "senet154")
SE = (*SENETS, "se_inception", "se_inception_resnet_v2")
ECA = (*(f"eca_resnet{depth}" for depth in (18, 34, 50, 101, 152)), "eca_mobilenetv2")
SK = ("sknet26", "sknet50", "sknet101", "sknet_cifar")
M = 2**20


def build(name: str, **kwargs: Any) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        model: nn.Module = getattr(models, name)(**kwargs)
    return model


def filled(model: nn.Module) -> nn.Module:
    """A network of `build` in memory, with weights for which everything shows in the output."""
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, t in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            if not t.is_floating_point():
                nn.init.zeros_(t)
            elif name.endswith("var") or (name == "weight" and isinstance(module, nn.BatchNorm2d)):
                nn.init.uniform_(t, 0.5, 1.5, generator=generator)
            elif t.dim() > 1:
                wide = 2.0 if isinstance(module, nn.Conv1d) else (2 / t[0].numel()) ** 0.5
                nn.init.normal_(t, std=wide, generator=generator)
            else:
                nn.init.normal_(t, std=0.1, generator=generator)
    return model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def blocks(model: nn.Module) -> list[Any]:
    """The blocks; of a selective kernel the whole one, without its attention."""
    found = [m for m in model.modules() if isinstance(m, FusedForward)]
    return [m for m in found if not isinstance(m, SelectiveKernelAttnForward)]


def with_backend(model: nn.Module, backend: str) -> nn.Module:
    """A copy whose blocks use ``backend``."""
    copied = copy.deepcopy(model)
    for block in blocks(copied):
        block.backend = backend
    return copied


def multiply_adds(model: nn.Module, side: int) -> float:
    """GFLOPs as the SENet paper counts: multiply-adds, a block's pooling and scaling included."""
    count = 0

    def layer(module: Any, args: Any, y: Tensor) -> None:
        nonlocal count
        count += y.numel() * module.weight[0].numel()

    def block(module: Any, args: Any, y: Tensor) -> None:
        nonlocal count
        count += 2 * y.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(layer)
    for module in blocks(model):
        module.register_forward_hook(block)
    model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return count / 1e9


def check_training(model: nn.Module, images: Tensor) -> None:
    """The backends agree on a training step, in which every parameter gets a gradient."""
    expected: list[Tensor] = []
    fused: list[Tensor] = []
    for backend, results in (("reference", expected), ("cpu", fused)):
        ours = with_backend(model, backend)
        torch.manual_seed(1)  # dropout
        y = ours(images)
        results.append(y.detach())
        results += torch.autograd.grad(y.square().sum(), list(ours.parameters()))
    for a, b in zip(fused, expected, strict=True):
        most = float(b.abs().max())
        assert most > 0
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7 * most)
