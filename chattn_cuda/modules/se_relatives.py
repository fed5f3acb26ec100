"""Relatives of Squeeze-and-Excitation as modules, on the same passes and gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.modules.fused import FusedForward, Operands
from chattn_cuda.modules.make_divisible import reduced_channels
from chattn_cuda.modules.squeeze_excite import (
    SqueezeExciteForward,
    SqueezeExciteLayers,
    pooled,
)

__all__ = [
    "EffectiveSqueezeExcite",
    "EffectiveSqueezeExciteForward",
    "GatherExcite",
    "SpatialChannelSqueezeExcite",
    "SpatialChannelSqueezeExciteForward",
    "SqueezeExciteCl",
    "SqueezeExciteScaleBias",
]


class EffectiveSqueezeExciteForward(SqueezeExciteForward):
    """The forward over the submodules fc and gate and the flag add_maxpool."""

    if TYPE_CHECKING:  # as real annotations, TorchScript would read them
        fc: nn.Conv2d
        gate: nn.Module
        add_maxpool: bool

    _block = "EffectiveSqueezeExcite"

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        """The one layer."""
        return SqueezeExciteLayers(
            None, None, "identity", self.fc, self.gate, self.add_maxpool, ("", "fc")
        )

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        return x * self.gate(self.fc(pooled(x, self.add_maxpool)))


class EffectiveSqueezeExcite(EffectiveSqueezeExciteForward, nn.Module):
    """Effective SE with the constructor, parameters and result of timm's ``EffectiveSEModule``.

    Lee and Park, arXiv 1911.06667: one fully connected layer, C x C, instead of two. State dicts
    load both ways. The input is (N, C, H, W), (N, C, L) or (N, C, D, H, W).

    Args:
        channels: C of the input.
        add_maxpool: Squeeze with the mean of the mean and the maximum, by the submodules.
        gate_layer: The gate: a name, a class or a factory.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.
        **_: Other keywords, which are ignored, as in timm.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: ``channels`` below 1, an unknown gate or backend.

    Examples:
        >>> y = EffectiveSqueezeExcite(64)(torch.randn(2, 64, 8, 8))
    """

    _any_rank = True

    def __init__(
        self,
        channels: int,
        add_maxpool: bool = False,
        gate_layer: ActivationSpec = "hard_sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        **_: Any,
    ) -> None:
        super().__init__()
        validation.check_positive(channels, "channels")
        validation.check_bool(add_maxpool, "add_maxpool")
        self.add_maxpool = add_maxpool
        self.fc = nn.Conv2d(channels, channels, kernel_size=1, device=device, dtype=dtype)
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend


class SqueezeExciteCl(SqueezeExciteForward, nn.Module):
    """SE on (N, H, W, C) tensors with the parameters and result of timm's ``SqueezeExciteCl``.

    A contiguous (N, H, W, C) tensor is a channels_last (N, C, H, W) one: nothing is copied. Inputs
    (N, L, C) and (N, D, H, W, C) are taken too. The layers are ``nn.Linear``.

    Args:
        channels: C of the input.
        rd_ratio: rd = channels * rd_ratio, rounded to a multiple of rd_divisor.
        rd_channels: rd itself, instead.
        rd_divisor: See rd_ratio.
        bias: Whether the two layers have biases.
        act_layer: Activation between the layers: a name, a class or a factory.
        gate_layer: The gate: a name, a class or a factory.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: ``channels``, ``rd_channels`` or ``rd_divisor`` below 1, an unknown activation
            or backend.

    Examples:
        >>> y = SqueezeExciteCl(64)(torch.randn(2, 8, 8, 64))
    """

    _block = "SqueezeExciteCl"
    _any_rank = True
    _channel_dim = -1

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        bias: bool = True,
        act_layer: ActivationSpec = nn.ReLU,
        gate_layer: ActivationSpec = "sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        rd_channels = reduced_channels(channels, rd_ratio, rd_channels, rd_divisor)
        factory = {"device": device, "dtype": dtype}
        self.fc1: Any = nn.Linear(channels, rd_channels, bias=bias, **factory)
        self.act = activations.make_layer(act_layer, "act_layer", inplace=True)
        self.fc2: Any = nn.Linear(rd_channels, channels, bias=bias, **factory)
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        """The two linear layers."""
        return SqueezeExciteLayers(self.fc1, None, self.act, self.fc2, self.gate)

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        s = self.fc2(self.act(self.fc1(x.mean((1, 2), keepdim=True))))
        return x * self.gate(s)


class SqueezeExciteScaleBias(FusedForward, nn.Module):
    """SE whose second layer gives a scale and a bias: ``y = gate(z) * x + b``.

    As in Leela Chess Zero's networks; see `chattn_cuda.functional.squeeze_excite_scale_bias`. The
    kernels have no such gate: it runs its submodules one by one, on every backend. The rows of
    ``fc2`` (2C of them) are those of the scale, then those of the bias.

    Args:
        channels: C of the input, which is (N, C, H, W), (N, C, L) or (N, C, D, H, W).
        rd_channels: Features between the layers.
        act_layer: Activation between the layers: a name, a class or a factory.
        gate_layer: The gate of the scale: a name, a class or a factory.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: ``channels`` or ``rd_channels`` below 1, an unknown activation or backend.
    """

    _any_rank = True

    def __init__(
        self,
        channels: int,
        rd_channels: int,
        act_layer: ActivationSpec = nn.ReLU,
        gate_layer: ActivationSpec = "sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        validation.check_positive(channels, "channels")
        validation.check_positive(rd_channels, "rd_channels")
        factory = {"device": device, "dtype": dtype}
        self.fc1 = nn.Conv2d(channels, rd_channels, kernel_size=1, **factory)
        self.act = activations.make_layer(act_layer, "act_layer", inplace=True)
        self.fc2 = nn.Conv2d(rd_channels, 2 * channels, kernel_size=1, **factory)
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        z, b = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))).chunk(2, 1)
        return x * self.gate(z) + b

    @torch.jit.unused
    def operands(self) -> Operands | str:
        """Why the operators do not cover this module."""
        return "the kernels have no gate with a scale and a bias"


class _Mlp(nn.Module):
    """Two 1x1 convolutions, under the names that timm's ConvMlp gives them."""

    def __init__(self, channels: int, rd_channels: int, act: nn.Module, factory: Any) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, rd_channels, kernel_size=1, **factory)
        self.act = act
        self.fc2 = nn.Conv2d(rd_channels, channels, kernel_size=1, **factory)

    def forward(self, s: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(s)))


class GatherExcite(SqueezeExciteForward, nn.Module):
    """Gather-excite over the whole map, without extra parameters: timm's ``GatherExcite``.

    Hu et al., "Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks", arXiv
    1810.12348, the variant GE-theta-minus with global extent and an MLP: the same as SE. Keys are
    timm's: ``mlp.fc1``, ``mlp.fc2``.

    Args:
        channels: C of the input, which is (N, C, H, W), (N, C, L) or (N, C, D, H, W).
        feat_size: Ignored, as by timm without extra_params.
        extra_params: False; with them, the map is not pooled alone.
        extent: 0, the whole map; with others, the gate is not one of channels alone.
        use_mlp: True.
        rd_ratio: rd = channels * rd_ratio, rounded to a multiple of rd_divisor.
        rd_channels: rd itself, instead.
        rd_divisor: See rd_ratio.
        add_maxpool: Squeeze with the mean of the mean and the maximum, by the submodules.
        act_layer: Activation between the layers: a name, a class or a factory.
        norm_layer: Ignored, as by timm without extra_params.
        gate_layer: The gate: a name, a class or a factory.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: Another ``extent``, ``extra_params`` or ``use_mlp``; ``channels``,
            ``rd_channels`` or ``rd_divisor`` below 1; an unknown activation or backend.
    """

    _block = "GatherExcite"
    _any_rank = True

    def __init__(
        self,
        channels: int,
        feat_size: Any = None,
        extra_params: bool = False,
        extent: int = 0,
        use_mlp: bool = True,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        add_maxpool: bool = False,
        act_layer: ActivationSpec = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        gate_layer: ActivationSpec = "sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if extent != 0 or extra_params or not use_mlp:
            raise ValueError(
                "GatherExcite takes extent=0 (the whole map), extra_params=False and use_mlp=True, "
                f"got extent={extent!r}, extra_params={extra_params!r}, use_mlp={use_mlp!r}"
            )
        rd_channels = reduced_channels(channels, rd_ratio, rd_channels, rd_divisor)
        validation.check_bool(add_maxpool, "add_maxpool")
        self.add_maxpool = add_maxpool
        act = activations.make_layer(act_layer, "act_layer")
        self.mlp = _Mlp(channels, rd_channels, act, {"device": device, "dtype": dtype})
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        """The layers of the MLP."""
        mlp, names = self.mlp, ("mlp.fc1", "mlp.fc2")
        if type(mlp) is not _Mlp:
            return SqueezeExciteLayers(
                None, None, "identity", None, "identity", changed=f"mlp is a {type(mlp).__name__}"
            )
        return SqueezeExciteLayers(
            mlp.fc1, None, mlp.act, mlp.fc2, self.gate, self.add_maxpool, names, (mlp,)
        )

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        return x * self.gate(self.mlp(pooled(x, self.add_maxpool)))


class SpatialChannelSqueezeExciteForward(SqueezeExciteForward):
    """The forward over cSE (a Sequential of pool, layer, activation, layer, gate) and sSE."""

    if TYPE_CHECKING:
        cSE: Any  # noqa: N815
        sSE: Any  # noqa: N815

    _block = "SpatialChannelSqueezeExcite"

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        """The layers of the channel half."""
        if type(self.cSE) is not nn.Sequential or len(self.cSE) != 5:
            return SqueezeExciteLayers(
                None, None, "identity", None, "identity", changed="cSE is not five layers any more"
            )
        pool, first, act, second, gate = self.cSE
        names = "cSE.1", "cSE.3"
        return SqueezeExciteLayers(
            first, None, act, second, gate, names=names, around=(self.cSE,), pool=pool
        )

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        return x * self.cSE(x) + x * self.sSE(x)

    @torch.jit.unused
    def _complete(self, x: Tensor, y: Tensor) -> Tensor:
        """The channel half, by the operators, and the spatial half."""
        return y + x * self.sSE(x)


class SpatialChannelSqueezeExcite(SpatialChannelSqueezeExciteForward, nn.Module):
    """Concurrent spatial and channel SE (scSE): ``se(x) + x * sigmoid(conv1x1(x))``.

    Roy et al., "Concurrent Spatial and Channel 'Squeeze & Excitation' in Fully Convolutional
    Networks", arXiv 1803.02579. The channel half is fused; the spatial half, which has a gate for
    every position, runs in PyTorch. Keys are those of segmentation_models_pytorch's ``SCSEModule``:
    ``cSE.1``, ``cSE.3``, ``sSE.0``.

    Args:
        in_channels: C of the input (N, C, H, W).
        reduction: rd = in_channels // reduction.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: ``in_channels`` below ``reduction``, ``reduction`` below 1, an unknown backend.
    """

    def __init__(self, in_channels: int, reduction: int = 16, *, backend: str = "auto") -> None:
        super().__init__()
        validation.check_positive(in_channels, "in_channels")
        validation.check_positive(reduction, "reduction")
        rd = in_channels // reduction
        validation.check_positive(rd, "in_channels // reduction")
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, rd, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(rd, in_channels, kernel_size=1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(in_channels, 1, kernel_size=1), nn.Sigmoid())
        self.backend = backend
