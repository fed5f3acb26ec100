"""Split attention: a selective kernel whose branches are slices of one map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations, backends, functional, ops, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.hooks import are_as_their_classes, own_behaviour
from chattn_cuda.modules.fused import FusedForward
from chattn_cuda.modules.inner_network import inner_network
from chattn_cuda.modules.layers import child, children
from chattn_cuda.modules.make_divisible import check_ratio
from chattn_cuda.modules.selective_kernel import before_norm, decide, fuse

__all__ = ["RadixSoftmax", "SplitAttn", "SplitAttnForward"]


_LAYERS = ("fc1", "bn1", "act1", "fc2")
_SOFTMAXES = (
    ("chattn_cuda.modules.split_attention", "RadixSoftmax"),
    ("timm.layers.split_attn", "RadixSoftmax"),
)


class SplitAttnForward(FusedForward):
    """The forward over conv, bn0, drop, act0, fc1, bn1, act1, fc2, rsoftmax and radix.

    Zhang et al., arXiv 2004.08955. The branches are slices of the convolution's map: they are read
    in place, and their gradients are written into one map (by Triton with copies of both).
    """

    if TYPE_CHECKING:
        conv: nn.Conv2d
        bn0: nn.Module
        drop: nn.Module
        act0: nn.Module
        fc1: nn.Conv2d
        bn1: Any
        act1: nn.Module
        fc2: nn.Conv2d
        rsoftmax: Any
        radix: int

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        return self._weighed(self.act0(self.drop(self.bn0(self.conv(x)))))

    def _weighed(self, u: Tensor) -> Tensor:
        n, _, h, w = u.shape
        u = u.reshape(n, self.radix, -1, h, w)
        s = u.sum(1).mean((2, 3), keepdim=True)
        z = self.fc2(self.act1(self.bn1(self.fc1(s))))
        gate = self.rsoftmax(z).view(n, self.radix, -1, 1, 1)
        return (u * gate).sum(1).contiguous()

    @torch.jit.unused
    def obstacle(self) -> str | None:
        """Why the operators do not cover this module as it is now; None where they do."""
        if not 1 < self.radix <= validation.MAX_BRANCHES:
            return f"the kernels take a radix of 2 to {validation.MAX_BRANCHES}"
        softmax = child(self, "rsoftmax")
        kind = type(softmax)
        if (kind.__module__, kind.__qualname__) not in _SOFTMAXES:
            return f"rsoftmax is a {kind.__name__}"
        if softmax.radix != self.radix:
            return f"rsoftmax has a radix of {softmax.radix}, the module one of {self.radix}"
        return None if are_as_their_classes(softmax) else f"rsoftmax {own_behaviour(softmax)}"

    @torch.jit.unused
    def _fuse(self, x: Tensor) -> Tensor | None:
        """The block, with what follows act0 by the operators."""
        validation.check_map(x)
        if self.obstacle() is not None:
            backends.select(self._backend, x.device.type)
            return ops.in_format_of(x, self.eager_forward(x))
        conv, *after = children(self, "conv", "bn0", "drop", "act0")
        maps, prologue = before_norm([(conv, after)], [x], self.radix)
        groups = child(self, "rsoftmax").cardinality
        network = inner_network(self, _LAYERS, self.radix, maps[0], groups)
        return fuse(maps, network, self._backend, self.radix, prologue)

    @torch.jit.unused
    def decide(self, x: Tensor) -> functional.Decision:
        """What ``forward(x)`` comes to."""
        validation.check_map(x)
        return decide("SplitAttn", self, x, functional.COPIES_OF_SLICES)


class RadixSoftmax(nn.Module):
    """The softmax over the radix, of logits (N, cardinality * radix * C'); a sigmoid for radix 1.

    Returns (N, radix * cardinality * C'): the rows of the first slice first.
    """

    def __init__(self, radix: int, cardinality: int) -> None:
        super().__init__()
        self.radix = radix
        self.cardinality = cardinality

    def forward(self, x: Tensor) -> Tensor:
        if self.radix == 1:
            return torch.sigmoid(x)
        z = x.view(x.shape[0], self.cardinality, self.radix, -1).transpose(1, 2)
        return torch.softmax(z, 1).reshape(x.shape[0], -1)


class SplitAttn(SplitAttnForward, nn.Module):
    """Split attention with the constructor, parameters and result of timm's SplitAttn.

    Zhang et al., "ResNeSt: Split-Attention Networks", arXiv 2004.08955, section 3.1. State dicts
    load both ways. One grouped convolution makes a map of ``radix`` slices; they are weighed by a
    softmax over the slices, read where they lie, and their gradients are written into one map.

    Args:
        in_channels: Of the input.
        out_channels: Of a slice and of y; default in_channels.
        kernel_size: Of the convolution.
        stride: Of the convolution.
        padding: Of the convolution; default kernel_size // 2.
        dilation: Of the convolution.
        groups: Cardinality; the convolution has ``groups * radix`` groups.
        bias: Whether the convolution has one; the layers of the attention do.
        radix: Slices. 2 to 4 run by the operators; 1 is a sigmoid gate, by the submodules.
        rd_ratio: Hidden channels = in_channels * radix * rd_ratio, at least 32, rounded to a
            multiple of rd_divisor.
        rd_channels: Hidden channels per slice, instead.
        rd_divisor: See rd_ratio.
        act_layer: Activation: a name, a class or a factory.
        norm_layer: Normalisation of the map and of the hidden values, or None. A BatchNorm2d in
            training needs a batch of two.
        drop_layer: Between normalisation and activation.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.
        **kwargs: Of the convolution, such as padding_mode.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A size below 1, groups that do not divide the channels, an unknown activation or
            backend.

    Examples:
        >>> y = SplitAttn(64, norm_layer=nn.BatchNorm2d)(torch.randn(2, 64, 8, 8))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        radix: int = 2,
        rd_ratio: float = 0.25,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        act_layer: ActivationSpec = nn.ReLU,
        norm_layer: Any = None,
        drop_layer: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        for value, name in (
            (in_channels, "in_channels"), (out_channels, "out_channels"), (groups, "groups"),
            (kernel_size, "kernel_size"), (radix, "radix"), (rd_divisor, "rd_divisor"),
        ):  # fmt: skip
            validation.check_positive(value, name)
        if rd_channels is None:
            width = in_channels * radix * rd_ratio
            hidden = max(32, int(width + rd_divisor / 2) // rd_divisor * rd_divisor)
            hidden += rd_divisor if hidden < 0.9 * width else 0
            check_ratio(rd_ratio, hidden, in_channels)
        else:
            validation.check_positive(rd_channels, "rd_channels")
            hidden = rd_channels * radix
        factory = {"device": device, "dtype": dtype}
        slices = out_channels * radix
        self.radix = radix
        self.conv = nn.Conv2d(
            in_channels, slices, kernel_size, stride,
            kernel_size // 2 if padding is None else padding, dilation, groups * radix, bias,
            **factory, **kwargs,
        )  # fmt: skip
        self.bn0 = norm_layer(slices, **factory) if norm_layer else nn.Identity()
        self.drop = drop_layer() if drop_layer else nn.Identity()
        self.act0 = activations.make_layer(act_layer, "act_layer", inplace=True)
        self.fc1 = nn.Conv2d(out_channels, hidden, 1, groups=groups, **factory)
        self.bn1 = norm_layer(hidden, **factory) if norm_layer else nn.Identity()
        self.act1 = activations.make_layer(act_layer, "act_layer", inplace=True)
        self.fc2 = nn.Conv2d(hidden, slices, 1, groups=groups, **factory)
        self.rsoftmax = RadixSoftmax(radix, groups)
        self.backend = backend
