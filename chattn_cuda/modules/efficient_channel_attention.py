"""Efficient channel attention as modules: timm's, and the variants of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda import activations, functional, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.modules.fused import Call, FusedForward, Operands
from chattn_cuda.modules.layers import child, gate_of, parameter, submodule_obstacle
from chattn_cuda.modules.make_divisible import reduced_channels

__all__ = [
    "CircularEfficientChannelAttention",
    "CircularEfficientChannelAttentionForward",
    "EfficientChannelAttention",
    "EfficientChannelAttentionForward",
    "EfficientChannelAttentionNS",
    "adaptive_kernel_size",
]


def adaptive_kernel_size(channels: int, gamma: float = 2, beta: float = 1) -> int:
    """The paper's k for a number of channels: (log2(channels) + beta) / gamma, made odd; >= 3.

    Wang et al., arXiv 1910.03151, equation 12, rounded as timm and the authors' code do.

    Raises:
        TypeError: ``channels`` is not an integer.
        ValueError: ``channels`` is below 1, or ``gamma`` is 0.
    """
    validation.check_positive(channels, "channels")
    if gamma == 0:
        raise ValueError("gamma must not be 0")
    t = int(abs(math.log2(channels) + beta) / gamma)
    return max(t if t % 2 else t + 1, 3)


class EfficientChannelAttentionForward(FusedForward):
    """The forward over the submodules conv, act, conv2 (both None without the MLP) and gate."""

    if TYPE_CHECKING:  # as real annotations, TorchScript would read them
        conv: nn.Conv1d
        act: Any
        conv2: Any
        gate: nn.Module

    _block = "EfficientChannelAttention"
    _reads: tuple[str, ...] = ("conv2",)
    _fusible = True
    _circular = False

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        s = self.conv(x.mean((2, 3)).unsqueeze(1))
        if self.conv2 is not None:
            s = self.conv2(self.act(s))
        return x * self.gate(s).transpose(1, 2).unsqueeze(3)

    @torch.jit.unused
    def operands(self) -> Operands | str:
        """What the operators take of the layers, or why they do not cover them."""
        conv: Any = self._conv_module()
        gate = self._gate(conv)
        if isinstance(gate, str):
            return gate
        expects = conv.groups, self._padding(conv)
        call = Call("eca", self.backend, 1, (gate[0].code, self._circular), expects=expects)
        rows = parameter(conv, "weight").shape[0]
        places = (conv, "weight"), (conv, "bias")
        return Operands(call, places, ("conv.weight",), rows if rows > 1 else None)

    @torch.jit.unused
    def check(self, m: Tensor, tensors: Sequence[Any], names: Sequence[str]) -> None:
        """Raise unless the weight fits the map ``m``."""
        mode = "circular" if self._circular else "zeros"
        validation.check_efficient_channel_attention(m, tensors[0], mode, names[0])

    @torch.jit.unused
    def _shape_obstacle(self, conv: Any) -> str | None:
        """Why the convolution is not the one that the operators compute; None where it is."""
        if self._has_mlp():
            return "the kernels do not know the gate with an MLP (use_mlp)"
        if (conv.in_channels, conv.out_channels, conv.padding_mode) != (1, 1, "zeros"):
            return "conv is not a convolution over the channels"
        if conv.padding != (self._padding(conv),):
            return f"conv has padding {conv.padding}"
        return None

    @torch.jit.unused
    def _padding(self, conv: Any) -> int:
        """On each side, for a gate as long as the channels: that of the weight that is there."""
        return int(parameter(conv, "weight").shape[-1]) // 2

    @torch.jit.unused
    def _gate(self, conv: Any) -> str | functional.Resolved:
        """The gate, or why it is not the operators'."""
        reason = submodule_obstacle(conv, "conv", nn.Conv1d) or self._shape_obstacle(conv)
        if reason is not None:
            return reason
        if parameter(conv, "bias") is not None:
            return "conv has a bias"
        weight = parameter(conv, "weight")
        if weight.shape[0] != conv.groups:
            return f"conv has {weight.shape[0]} rows of weights"
        if weight.shape[-1] % 2 == 0 or conv.stride != (1,) or conv.dilation != (1,):
            return "conv has an even length, a stride or a dilation"
        return gate_of(self._gate_module())

    @torch.jit.unused
    def _conv_module(self) -> nn.Module:
        conv: nn.Module = child(self, "conv")
        return conv

    @torch.jit.unused
    def _gate_module(self) -> nn.Module:
        gate: nn.Module = child(self, "gate")
        return gate

    @torch.jit.unused
    def _has_mlp(self) -> bool:
        return self.conv2 is not None


class CircularEfficientChannelAttentionForward(EfficientChannelAttentionForward):
    """The forward over the submodules conv and gate, with circular padding."""

    if TYPE_CHECKING:
        padding: int

    _reads = ("padding",)
    _circular = True

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        s = x.mean((2, 3)).unsqueeze(1)
        s = self.conv(F.pad(s, (self.padding, self.padding), mode="circular"))
        return x * self.gate(s).transpose(1, 2).unsqueeze(3)

    @torch.jit.unused
    def _shape_obstacle(self, conv: Any) -> str | None:
        if (conv.in_channels, conv.out_channels, conv.padding) != (1, 1, (0,)):
            return "conv is not a convolution over the channels"
        if self.padding != self._padding(conv):
            return f"padding is {self.padding}"
        return None


class EfficientChannelAttention(EfficientChannelAttentionForward, nn.Module):
    """Efficient channel attention with the constructor, parameters and result of timm's EcaModule.

    Wang et al., arXiv 1910.03151. State dicts load both ways, those of the authors' ``eca_layer``
    too (``conv.weight`` (1, 1, k)). The weight stays in an ``nn.Conv1d``, which the fused path
    reads without calling: where it has hooks, or is replaced by another class, the module calls its
    submodules one after the other instead.

    Args:
        channels: C of the input, from which k follows (`adaptive_kernel_size`). Without it, k is
            ``kernel_size``: the authors' checkpoints have a k for each stage, 1 included.
        kernel_size: k where ``channels`` is not given; odd.
        gamma: See `adaptive_kernel_size`.
        beta: See `adaptive_kernel_size`.
        act_layer: Activation of the MLP; without ``use_mlp`` it is ignored.
        gate_layer: The gate: a name, a class or a factory.
        rd_ratio: Of the MLP: rd = channels * rd_ratio, rounded to a multiple of rd_divisor.
        rd_channels: rd itself, instead.
        rd_divisor: See rd_ratio.
        use_mlp: Two convolutions with rd features between them (timm's "ecam"), which run one by
            one.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An even ``kernel_size``, ``channels`` below 1 (or none with ``use_mlp``), an
            unknown activation or backend. The forward raises as
            `chattn_cuda.functional.efficient_channel_attention` does.

    Examples:
        >>> y = EfficientChannelAttention(64)(torch.randn(2, 64, 8, 8))
    """

    _any_rank = True

    def __init__(
        self,
        channels: int | None = None,
        kernel_size: int = 3,
        gamma: float = 2,
        beta: float = 1,
        act_layer: ActivationSpec | None = None,
        gate_layer: ActivationSpec = "sigmoid",
        rd_ratio: float = 1 / 8,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        use_mlp: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        k = _kernel_size(channels, kernel_size, gamma, beta)
        factory = {"device": device, "dtype": dtype}
        self.act: Any = None
        self.conv2: Any = None
        if use_mlp:
            if channels is None:
                raise ValueError("use_mlp needs channels")
            rd_channels = reduced_channels(channels, rd_ratio, rd_channels, rd_divisor, 0.9)
            self.conv = nn.Conv1d(1, rd_channels, kernel_size=1, **factory)
            self.act = activations.make_layer(act_layer or nn.ReLU, "act_layer")
            self.conv2 = nn.Conv1d(rd_channels, 1, kernel_size=k, padding=k // 2, **factory)
        else:
            self.conv = nn.Conv1d(1, 1, kernel_size=k, padding=k // 2, bias=False, **factory)
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend


class CircularEfficientChannelAttention(CircularEfficientChannelAttentionForward, nn.Module):
    """Efficient channel attention with the last channel next to the first: timm's CecaModule.

    Args:
        channels: As in `EfficientChannelAttention`.
        kernel_size: As in `EfficientChannelAttention`.
        gamma: As in `EfficientChannelAttention`.
        beta: As in `EfficientChannelAttention`.
        act_layer: Gives the convolution a bias and is not applied, as in timm.
        gate_layer: The gate: a name, a class or a factory.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An even ``kernel_size``, ``channels`` below 1, an unknown activation or backend.
    """

    _any_rank = True

    def __init__(
        self,
        channels: int | None = None,
        kernel_size: int = 3,
        gamma: float = 2,
        beta: float = 1,
        act_layer: ActivationSpec | None = None,
        gate_layer: ActivationSpec = "sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        k = _kernel_size(channels, kernel_size, gamma, beta)
        self.padding = k // 2
        bias = act_layer is not None
        self.conv = nn.Conv1d(1, 1, kernel_size=k, bias=bias, device=device, dtype=dtype)
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend


class EfficientChannelAttentionNS(EfficientChannelAttentionForward, nn.Module):
    """The paper's ECA-NS: k weights of its own for every channel, in ``conv.weight`` (C, 1, k).

    Keys and result are those of the authors' ``eca_ns``.

    Args:
        channels: C of the input.
        kernel_size: k, odd.
        gate_layer: The gate: a name, a class or a factory.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An even ``kernel_size``, ``channels`` below 1, an unknown gate or backend.
    """

    _any_rank = True

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        gate_layer: ActivationSpec = "sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        validation.check_positive(channels, "channels")
        k = _odd(kernel_size)
        factory = {"device": device, "dtype": dtype}
        self.conv = nn.Conv1d(channels, channels, k, groups=channels, bias=False, **factory)
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules: the convolution sees every channel's window as a signal."""
        k = self.conv.weight.shape[2]
        s = F.pad(x.mean((2, 3)), (k // 2, k // 2))
        s = torch.stack([s[:, j : j + x.shape[1]] for j in range(k)], 2)
        return x * self.gate(self.conv(s)).unsqueeze(-1)

    @torch.jit.unused
    def _shape_obstacle(self, conv: Any) -> str | None:
        if not conv.in_channels == conv.out_channels == conv.groups or conv.padding != (0,):
            return "conv is not a convolution of every channel's own window"
        return None


def _kernel_size(channels: int | None, kernel_size: int, gamma: float, beta: float) -> int:
    return _odd(kernel_size) if channels is None else adaptive_kernel_size(channels, gamma, beta)


def _odd(kernel_size: int) -> int:
    validation.check_positive(kernel_size, "kernel_size")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    return kernel_size
