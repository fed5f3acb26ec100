"""Adapters for the classes of timm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from chattn_cuda import activations
from chattn_cuda.convert.adapter import Adapter, se_obstacle
from chattn_cuda.modules.efficient_channel_attention import (
    CircularEfficientChannelAttentionForward,
    EfficientChannelAttentionForward,
)
from chattn_cuda.modules.fused import FusedForward, submodule_obstacle
from chattn_cuda.modules.se_relatives import EffectiveSqueezeExciteForward
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward, SqueezeExciteLayers

__all__ = ["ADAPTERS"]


class _EfficientNet(SqueezeExciteForward):
    if TYPE_CHECKING:
        conv_reduce: Any
        act1: Any
        conv_expand: Any

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        names = ("conv_reduce", "conv_expand")
        return SqueezeExciteLayers(
            self.conv_reduce, None, self.act1, self.conv_expand, self.gate, names=names
        )


class _Legacy(SqueezeExciteForward):
    if TYPE_CHECKING:
        relu: Any
        sigmoid: Any

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        return SqueezeExciteLayers(self.fc1, None, self.relu, self.fc2, self.sigmoid)


class _ChannelsLast(SqueezeExciteForward):
    _channel_dim = -1

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        return SqueezeExciteLayers(self.fc1, None, self.act, self.fc2, self.gate)


def _eca_obstacle(module: Any) -> str | None:
    if module.conv2 is not None:
        return "the kernels do not know the gate with an MLP (use_mlp)"
    return _conv_obstacle(module)


def _ceca_obstacle(module: Any) -> str | None:
    padding = module.padding
    if type(module.conv) is nn.Conv1d and padding != module.conv.kernel_size[0] // 2:
        return f"padding is {padding}"
    return _conv_obstacle(module)


def _conv_obstacle(module: Any) -> str | None:
    if type(module.conv) is not nn.Conv1d:
        return submodule_obstacle(module.conv, "conv", nn.Conv1d)
    if module.conv.bias is not None:
        return "conv has a bias"
    gate = activations.resolve(module.gate)
    if gate is None or not gate[0].is_gate:
        return f"the kernels do not know gate ({type(module.gate).__name__})"
    return None


def _se(mixin: type[FusedForward]) -> Adapter:
    return Adapter(mixin, se_obstacle(mixin))


ADAPTERS: dict[str, Adapter] = {
    "timm.layers.squeeze_excite.SEModule": _se(SqueezeExciteForward),
    "timm.layers.squeeze_excite.EffectiveSEModule": _se(EffectiveSqueezeExciteForward),
    "timm.layers.squeeze_excite.SqueezeExciteCl": _se(_ChannelsLast),
    "timm.models._efficientnet_blocks.SqueezeExcite": _se(_EfficientNet),
    "timm.models.senet.SEModule": _se(_Legacy),
    "timm.layers.eca.EcaModule": Adapter(EfficientChannelAttentionForward, _eca_obstacle),
    "timm.layers.eca.CecaModule": Adapter(CircularEfficientChannelAttentionForward, _ceca_obstacle),
}
