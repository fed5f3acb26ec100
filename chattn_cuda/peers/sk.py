"""The peers of selective kernels and split attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import validation
from chattn_cuda.modules.selective_kernel import (
    SelectiveKernelAttnForward,
    SelectiveKernelForward,
)
from chattn_cuda.modules.split_attention import SplitAttnForward
from chattn_cuda.peers.peer import Measured, Peer, Shape

__all__ = ["PEERS"]

_PATH = ("timm.layers.conv_bn_act.ConvNormAct", "timm.layers.norm_act.BatchNormAct2d")
_SHAPES: tuple[Shape, ...] = (
    (8, 128, 56, 56),
    (8, 256, 28, 28),
    (8, 512, 14, 14),
    (8, 1024, 7, 7),
)


def _obstacle(*parts: str) -> Callable[[Any], str | None]:
    """Lasting obstacles only; the layers in between are called, whatever they are."""

    def obstacle(module: Any) -> str | None:
        for path in parts:
            functools.reduce(getattr, path.split("."), module)
        count = module.radix if hasattr(module, "radix") else module.num_paths
        least = 2 if hasattr(module, "radix") else 1
        if not least <= count <= validation.MAX_BRANCHES:
            return f"the kernels take {least} to {validation.MAX_BRANCHES} branches, it has {count}"
        return None

    return obstacle


class _Branches(nn.Module):
    """timm's attention of two branches."""

    def __init__(self, cls: Any, channels: int) -> None:
        super().__init__()
        self.attn = cls(channels, 2, max(channels // 16, 32))

    def forward(self, *branches: Tensor) -> Tensor:
        weigh: Any = getattr(self.attn, "weigh", None)  # once it is accelerated
        if weigh is not None:
            return weigh(branches)
        u = torch.stack(branches, 1)
        return (u * self.attn(u)).sum(1)


def _split_attn(cls: Any, channels: int) -> nn.Module:
    """What follows the convolution; its map has the channels of both branches."""
    module: nn.Module = cls(channels // 2, groups=2, norm_layer=nn.BatchNorm2d)
    module.add_module("conv", nn.Identity())
    return module


PEERS: tuple[Peer, ...] = (
    Measured(
        "timm.layers.selective_kernel.SelectiveKernelAttn",
        SelectiveKernelAttnForward,
        _obstacle("fc_reduce", "bn", "act", "fc_select"),
        name="sk",
        title="Selective Kernel, two branches",
        build=_Branches,
        shapes=_SHAPES,
        maps=2,
    ),
    Peer(
        "timm.layers.selective_kernel.SelectiveKernel",
        SelectiveKernelForward,
        _obstacle(
            "paths", "in_channels", "split_input",
            "attn.fc_reduce", "attn.bn", "attn.act", "attn.fc_select",
        ),
        parts=("timm.layers.selective_kernel.SelectiveKernelAttn", *_PATH),
        models=("skresnet50", "skresnext50_32x4d"),
    ),
    Measured(
        "timm.layers.split_attn.SplitAttn",
        SplitAttnForward,
        _obstacle("conv", "bn0", "drop", "act0", "fc1", "bn1", "act1", "fc2", "rsoftmax"),
        parts=("timm.layers.split_attn.RadixSoftmax", *_PATH[1:]),
        models=("resnest50d",),
        name="split_attn",
        title="Split attention",
        build=_split_attn,
        shapes=_SHAPES,
        slices=2,
        relative=True,
    ),
)  # fmt: skip
