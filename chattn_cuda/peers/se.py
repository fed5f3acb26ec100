"""The peers of squeeze-and-excitation and its relatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from chattn_cuda.modules.se_relatives import EffectiveSqueezeExciteForward
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward, SqueezeExciteLayers
from chattn_cuda.peers.peer import Measured, Peer

__all__ = ["PEERS", "se_obstacle"]


def se_obstacle(mixin: Any) -> Callable[[Any], str | None]:
    """The ``obstacle`` of a forward of the SE family, from its layers."""
    return lambda module: mixin.fused_layers(module).why_never_fused()


class _EfficientNet(SqueezeExciteForward):
    @torch.jit.unused
    def fused_layers(self: Any) -> SqueezeExciteLayers:
        names = ("conv_reduce", "conv_expand")
        return SqueezeExciteLayers(
            self.conv_reduce, None, self.act1, self.conv_expand, self.gate, names=names
        )


class _Legacy(SqueezeExciteForward):
    @torch.jit.unused
    def fused_layers(self: Any) -> SqueezeExciteLayers:
        return SqueezeExciteLayers(self.fc1, None, self.relu, self.fc2, self.sigmoid)


class _ChannelsLast(SqueezeExciteForward):
    _channel_dim = -1

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        return SqueezeExciteLayers(self.fc1, None, self.act, self.fc2, self.gate)


class _Torchvision(SqueezeExciteForward):
    _unbatched = True

    @torch.jit.unused
    def fused_layers(self: Any) -> SqueezeExciteLayers:
        return SqueezeExciteLayers(
            self.fc1, None, self.activation, self.fc2, self.scale_activation, pool=self.avgpool
        )


PEERS: tuple[Peer, ...] = (
    Measured(
        "timm.layers.squeeze_excite.SEModule",
        SqueezeExciteForward,
        se_obstacle(SqueezeExciteForward),
        models=(
            "seresnet50",
            "seresnext50_32x4d",
            "regnety_032",
            "rexnet_100",
            "repvgg_d2se",
            "nfnet_l0",
        ),
        name="se",
        title="Squeeze-and-Excitation",
    ),
    Measured(
        "timm.layers.squeeze_excite.EffectiveSEModule",
        EffectiveSqueezeExciteForward,
        se_obstacle(EffectiveSqueezeExciteForward),
        models=("ese_vovnet39b",),
        name="ese",
        title="Effective Squeeze-and-Excitation",
        relative=True,
    ),
    Peer("timm.layers.squeeze_excite.SqueezeExciteCl", _ChannelsLast, se_obstacle(_ChannelsLast)),
    Peer(
        "timm.models._efficientnet_blocks.SqueezeExcite",
        _EfficientNet,
        se_obstacle(_EfficientNet),
        models=("efficientnet_b0", "mobilenetv3_large_100"),
    ),
    Peer("timm.models.senet.SEModule", _Legacy, se_obstacle(_Legacy), models=("legacy_senet154",)),
    Peer(
        "torchvision.ops.misc.SqueezeExcitation",
        _Torchvision,
        se_obstacle(_Torchvision),
        models=("mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf"),
    ),
)
