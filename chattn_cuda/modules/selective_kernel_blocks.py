"""Blocks around a selective kernel: timm's SelectiveKernel, the paper's convolution, SKNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.modules.make_divisible import check_ratio, make_divisible
from chattn_cuda.modules.selective_kernel import SelectiveKernelAttn, SelectiveKernelForward

__all__ = ["SKConv", "SKNet", "SKUnit", "SelectiveKernel", "SelectiveKernelConv"]

_SAME: Any = object()


class Path(nn.Module):
    """Convolution, normalisation and activation of one branch, with timm's keys conv and bn."""

    def __init__(
        self, cin: int, cout: int, kernel: int, dilation: int, stride: int, groups: int,
        act_layer: ActivationSpec, norm_layer: Any, aa_layer: Any, drop_layer: Any, factory: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        reduce = aa_layer is not None and stride > 1
        self.conv = nn.Conv2d(
            cin, cout, kernel, 1 if reduce else stride, dilation * (kernel - 1) // 2, dilation,
            groups, bias=False, **factory,
        )  # fmt: skip
        self.bn = norm_layer(cout, **factory) if norm_layer else nn.Identity()
        self.drop = drop_layer() if drop_layer else nn.Identity()
        self.act = activations.make_layer(act_layer, "act_layer", inplace=True)
        self.aa = aa_layer(channels=cout, stride=stride) if reduce else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.aa(self.act(self.drop(self.bn(self.conv(x)))))


class SelectiveKernel(SelectiveKernelForward, nn.Module):
    """A selective-kernel convolution with timm's constructor, parameters and result.

    Differences from timm: ``act_layer`` and ``norm_layer`` reach the attention too, ``kernel_size``
    may be a tuple, channels_last stays channels_last, and no stacked map is made.

    Args:
        in_channels: Of the input.
        out_channels: Of every branch and of y; default in_channels.
        kernel_size: One per branch (default 3 and 5), or one for two branches; odd, at least 3.
        stride: Of the convolutions.
        dilation: Of the convolutions.
        groups: Of the convolutions.
        rd_ratio: d = out_channels * rd_ratio, rounded to a multiple of rd_divisor.
        rd_channels: d itself, instead.
        rd_divisor: See rd_ratio.
        keep_3x3: Dilated 3x3 convolutions in place of larger ones.
        split_input: Every branch gets its share of the input's channels.
        act_layer: Activation: a name, a class or a factory.
        norm_layer: Normalisation.
        aa_layer: Anti-aliasing behind a stride.
        drop_layer: Between normalisation and activation.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.
        attn_norm_layer: Normalisation inside the attention, if another; None for none, which a
            training batch of one sample needs.
        attn_bias: Whether the attention's layers have biases.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An even kernel size or one below 3, sizes below 1, channels that the branches or
            groups do not divide, an unknown activation or backend.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        keep_3x3: bool = True,
        split_input: bool = True,
        act_layer: ActivationSpec = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        aa_layer: Any = None,
        drop_layer: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        attn_norm_layer: Any = _SAME,
        attn_bias: bool = False,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        out_channels = in_channels if out_channels is None else out_channels
        for value, name in (
            (in_channels, "in_channels"), (out_channels, "out_channels"), (stride, "stride"),
            (dilation, "dilation"), (groups, "groups"), (rd_divisor, "rd_divisor"),
            (1 if rd_channels is None else rd_channels, "rd_channels"),
        ):  # fmt: skip
            validation.check_positive(value, name)
        kernels = kernel_size or (3, 5)
        kernels = [kernels] * 2 if isinstance(kernels, int) else list(kernels)
        for k in kernels:
            validation.check_positive(k, "kernel_size")
            if k < 3 or k % 2 == 0:
                raise ValueError(f"kernel_size must be odd and at least 3, got {k}")
        self.num_paths = len(kernels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.split_input = split_input
        if split_input and in_channels % self.num_paths:
            raise ValueError(
                f"in_channels ({in_channels}) must be a multiple of the {self.num_paths} branches "
                "with split_input"
            )
        cin = in_channels // self.num_paths if split_input else in_channels
        form = [(3, dilation * (k - 1) // 2) if keep_3x3 else (k, dilation) for k in kernels]
        self.paths = nn.ModuleList(
            Path(cin, out_channels, k, d, stride, min(out_channels, groups), act_layer, norm_layer,
                  aa_layer, drop_layer, factory)
            for k, d in form
        )  # fmt: skip
        d = rd_channels or make_divisible(out_channels * rd_ratio, rd_divisor, round_limit=0.9)
        check_ratio(0 if rd_channels else rd_ratio, d, out_channels)
        self.attn = SelectiveKernelAttn(
            out_channels,
            self.num_paths,
            d,
            act_layer,
            norm_layer if attn_norm_layer is _SAME else attn_norm_layer,
            **factory,
            bias=attn_bias,
        )
        self.backend = backend


class SelectiveKernelConv(SelectiveKernel):
    """The paper's selective-kernel convolution: dilated 3x3 branches of the whole input.

    Li et al., arXiv 1903.06586, section 3.1: branch m has dilation m + 1, d = max(C / r, L).

    Args:
        channels: C of the input and the output.
        branches: M.
        groups: G of the convolutions.
        reduction: r.
        min_channels: L.
        stride: Of the convolutions.
        fc: "paper": batch norm between the layers of the attention, and no biases. "plain": biases
            and no batch norm, as in widely copied code; it trains with a single sample.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A size below 1, another ``fc``, groups that do not divide the channels, an
            unknown backend.
    """

    def __init__(
        self,
        channels: int,
        branches: int = 2,
        groups: int = 32,
        reduction: int = 16,
        min_channels: int = 32,
        stride: int = 1,
        fc: str = "paper",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        for value, name in ((channels, "channels"), (branches, "branches"), (groups, "groups"),
                            (reduction, "reduction"), (min_channels, "min_channels")):  # fmt: skip
            validation.check_positive(value, name)
        if fc not in ("paper", "plain"):
            raise ValueError(f"fc must be 'paper' or 'plain', got {fc!r}")
        super().__init__(
            channels,
            kernel_size=[3 + 2 * m for m in range(branches)],
            stride=stride,
            groups=groups,
            rd_channels=max(channels // reduction, min_channels),
            split_input=False,
            attn_norm_layer=nn.BatchNorm2d if fc == "paper" else None,
            attn_bias=fc == "plain",
            device=device,
            dtype=dtype,
            backend=backend,
        )


class SKConv(SelectiveKernelConv):
    """`SelectiveKernelConv` with the signature of widely copied code.

    Args:
        features: C.
        WH: Ignored: pooling does not depend on the input's size.
        M: Branches.
        G: Groups.
        r: Reduction.
        stride: Of the convolutions.
        L: The least d.
        fc: See `SelectiveKernelConv`.
        backend: "auto" or one of `chattn_cuda.backends.names()`.
    """

    def __init__(
        self, features: int, WH: Any, M: int, G: int, r: int, stride: int = 1, L: int = 32,
        *, fc: str = "paper", backend: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(features, M, G, r, L, stride, fc, backend=backend)


class SKUnit(nn.Module):
    """A residual bottleneck around `SKConv`, with its usual signature.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        WH: Ignored.
        M: Branches.
        G: Groups.
        r: Reduction.
        mid_features: Channels of the bottleneck; default out_features / 2.
        stride: Of the selective kernel.
        L: The least d.
        fc: See `SelectiveKernelConv`.
        backend: "auto" or one of `chattn_cuda.backends.names()`.
    """

    def __init__(
        self, in_features: int, out_features: int, WH: Any, M: int, G: int, r: int,
        mid_features: int | None = None, stride: int = 1, L: int = 32,
        *, fc: str = "paper", backend: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        mid = mid_features or out_features // 2
        self.reduce = nn.Sequential(_pointwise(in_features, mid), nn.BatchNorm2d(mid), nn.ReLU())
        self.select = SKConv(mid, WH, M, G, r, stride, L, fc=fc, backend=backend)
        self.expand = nn.Sequential(_pointwise(mid, out_features), nn.BatchNorm2d(out_features))
        self.shortcut: nn.Module = nn.Identity()
        if in_features != out_features or stride != 1:
            self.shortcut = nn.Sequential(
                _pointwise(in_features, out_features, stride), nn.BatchNorm2d(out_features)
            )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features, H, W) to (N, out_features, H / stride, W / stride)."""
        return self.act(self.expand(self.select(self.reduce(x))) + self.shortcut(x))


class SKNet(nn.Module):
    """Three stages of three `SKUnit`, for small images: 64 to 256, 512 and 1024 channels.

    Args:
        class_num: Classes.
        fc: See `SelectiveKernelConv`.
        backend: "auto" or one of `chattn_cuda.backends.names()`.
    """

    def __init__(self, class_num: int, *, fc: str = "paper", backend: str = "auto") -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        units, channels = [], 64
        for features in (256, 512, 1024):
            for stride in (2, 1, 1):
                units.append(
                    SKUnit(channels, features, None, 2, 8, 2, stride=stride, fc=fc, backend=backend)
                )
                channels = features
        self.stages = nn.Sequential(*units)
        self.classifier = nn.Linear(channels, class_num)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) of any size to logits (N, class_num)."""
        return self.classifier(self.stages(self.stem(x)).mean((2, 3)))


def _pointwise(cin: int, cout: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 1, stride, bias=False)
