"""Modules built as other libraries build theirs, for `accelerate`: written here, same structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class SELayer(nn.Module):
    """As in moskomule/senet.pytorch: two linear layers without bias."""

    def __init__(self, channel: int, reduction: int = 4) -> None:
        super().__init__()
        rd = channel // reduction
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channel, rd, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(rd, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        gate = self.fc(self.avg_pool(x).view(n, c))
        return x * gate.view(n, c, 1, 1).expand_as(x)


class ChannelSELayer(nn.Module):
    """As in MONAI: one, two or three dimensions, linear layers with bias."""

    def __init__(self, spatial_dims: int, in_channels: int, r: int = 2) -> None:
        super().__init__()
        pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
        self.avg_pool = pool[spatial_dims](1)
        self.fc = nn.Sequential(
            nn.Linear(in_channels, in_channels // r),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(in_channels // r, in_channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        gate = self.fc(self.avg_pool(x).view(n, c))
        return x * gate.view([n, c] + [1] * (x.dim() - 2))


class ResidualSELayer(ChannelSELayer):
    """As in MONAI: the same submodules, another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class SE(nn.Module):
    """As in pycls."""

    def __init__(self, w_in: int, w_se: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.f_ex = nn.Sequential(
            nn.Conv2d(w_in, w_se, 1),
            nn.SiLU(),
            nn.Conv2d(w_se, w_in, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.f_ex(self.avg_pool(x))


class HSigmoid(nn.Module):
    """As in mmcv."""

    def __init__(self, bias: float = 3.0, divisor: float = 6.0) -> None:
        super().__init__()
        self.bias, self.divisor = bias, divisor
        self.min_value, self.max_value = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return ((x + self.bias) / self.divisor).clamp(self.min_value, self.max_value)


class ConvModule(nn.Module):
    """As in mmcv: a convolution and its activation."""

    def __init__(self, c_in: int, c_out: int, act: nn.Module, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=bias)
        self.activate = act

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.conv(x))


class MMSELayer(nn.Module):
    """As in mmpretrain and mmdet."""

    def __init__(self, channels: int, ratio: int = 4, bias: bool = True, hard: bool = True) -> None:
        super().__init__()
        rd = channels // ratio
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = ConvModule(channels, rd, nn.ReLU(inplace=True), bias)
        self.conv2 = ConvModule(rd, channels, HSigmoid() if hard else nn.Sigmoid(), bias)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(self.conv1(self.global_avgpool(x)))


class eca_layer(nn.Module):  # noqa: N801
    """As in BangguWu/ECANet."""

    def __init__(self, channel: int, k_size: int = 3) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, k_size, padding=k_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.avg_pool(x).squeeze(-1).transpose(-1, -2))
        return x * self.sigmoid(y.transpose(-1, -2).unsqueeze(-1)).expand_as(x)


class Conv2dStaticSamePadding(nn.Conv2d):
    """As in lukemelas/EfficientNet-PyTorch: pads for maps of one size, more behind than before."""

    def __init__(self, c_in: int, c_out: int, k: int, pad: tuple[int, int], **options: Any) -> None:
        super().__init__(c_in, c_out, k, **options)
        self.static_padding = nn.ZeroPad2d(pad * 2) if max(pad) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class MemoryEfficientSwish(nn.Module):
    """As there."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class MBConvBlock(nn.Module):
    """As there: SE inside the forward, stochastic depth by an argument."""

    def __init__(self, c_in: int, c_out: int, expand: int = 1, k: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.has_se = True
        self.shortcut = stride == 1 and c_in == c_out
        c = c_in * expand
        if expand != 1:
            self._expand_conv = Conv2dStaticSamePadding(c_in, c, 1, (0, 0), bias=False)
            self._bn0 = nn.BatchNorm2d(c)
        pad = ((k - stride) // 2, (k - stride + 1) // 2)
        depthwise = {"groups": c, "stride": stride, "bias": False}
        self._depthwise_conv = Conv2dStaticSamePadding(c, c, k, pad, **depthwise)
        self._bn1 = nn.BatchNorm2d(c)
        self._se_reduce = Conv2dStaticSamePadding(c, c_in // 4, 1, (0, 0))
        self._se_expand = Conv2dStaticSamePadding(c_in // 4, c, 1, (0, 0))
        self._project_conv = Conv2dStaticSamePadding(c, c_out, 1, (0, 0), bias=False)
        self._bn2 = nn.BatchNorm2d(c_out)
        self._swish = MemoryEfficientSwish()

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        x = inputs
        if "_expand_conv" in self._modules:
            x = self._swish(self._bn0(self._expand_conv(x)))
        x = self._swish(self._bn1(self._depthwise_conv(x)))
        if self.has_se:
            x = self.excited(x)
        x = self._bn2(self._project_conv(x))
        if self.shortcut:
            if drop_connect_rate and self.training:
                keep = torch.rand(len(x), 1, 1, 1, dtype=x.dtype) >= drop_connect_rate
                x = x * keep / (1 - drop_connect_rate)
            x = x + inputs
        return x

    def excited(self, x: Tensor) -> Tensor:
        s = nn.functional.adaptive_avg_pool2d(x, 1)
        s = self._se_expand(self._swish(self._se_reduce(s)))
        return torch.sigmoid(s) * x


#: A module of 24 channels, and the shape of a map that it takes.
BUILD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "moskomule": (lambda: SELayer(24), (2, 24, 5, 7)),
    "monai-1d": (lambda: ChannelSELayer(1, 24), (2, 24, 35)),
    "monai-2d": (lambda: ChannelSELayer(2, 24), (2, 24, 5, 7)),
    "monai-3d": (lambda: ChannelSELayer(3, 24), (2, 24, 3, 5, 7)),
    "monai-residual": (lambda: ResidualSELayer(2, 24), (2, 24, 5, 7)),
    "monai-residual-3d": (lambda: ResidualSELayer(3, 24), (2, 24, 3, 5, 7)),
    "pycls": (lambda: SE(24, 6), (2, 24, 5, 7)),
    "mmpretrain": (lambda: MMSELayer(24), (2, 24, 5, 7)),
    "mmpretrain-sigmoid": (lambda: MMSELayer(24, bias=False, hard=False), (2, 24, 5, 7)),
    "ecanet": (lambda: eca_layer(24, 5), (2, 24, 5, 7)),
    "ecanet-k1": (lambda: eca_layer(24, 1), (2, 24, 5, 7)),
    "lukemelas": (lambda: MBConvBlock(24, 24, 2), (2, 24, 5, 7)),
    "lukemelas-stride": (lambda: MBConvBlock(24, 16, k=5, stride=2), (2, 24, 6, 8)),
}


class MaxPooled(SELayer):
    """Looks like an SELayer from outside; with zero weights it even gives the same."""

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(torch.amax(x, (2, 3)))
        return x * gate[:, :, None, None]


class Squared(eca_layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


class Detached(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(x.mean((2, 3)).detach())
        return x * gate[:, :, None, None]


class Refusing(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("maps are 224 x 224")


class AfterProjection(MBConvBlock):
    """Excites the projected map: has the structure of the block, but SE somewhere else."""

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        x = self._swish(self._bn1(self._depthwise_conv(inputs)))
        return self._bn2(self.excited(self._project_conv(x)))


class Unasked(MBConvBlock):
    """Computes SE without asking whether it has one."""

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        x = self.excited(self._swish(self._bn1(self._depthwise_conv(inputs))))
        return self._bn2(self._project_conv(x))


class LowRank(nn.Conv2d):
    """A layer that somebody put in the place of another."""
