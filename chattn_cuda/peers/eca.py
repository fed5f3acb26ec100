"""The peers of efficient channel attention."""

from __future__ import annotations

from typing import Any

from torch import nn

from chattn_cuda import activations
from chattn_cuda.modules.efficient_channel_attention import (
    CircularEfficientChannelAttentionForward,
    EfficientChannelAttentionForward,
)
from chattn_cuda.modules.fused import submodule_obstacle
from chattn_cuda.peers.peer import Measured, Peer

__all__ = ["PEERS"]


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


PEERS: tuple[Peer, ...] = (
    Measured(
        "timm.layers.eca.EcaModule",
        EfficientChannelAttentionForward,
        _eca_obstacle,
        models=("ecaresnet50d", "eca_nfnet_l0"),
        name="eca",
        title="Efficient Channel Attention",
    ),
    Peer("timm.layers.eca.CecaModule", CircularEfficientChannelAttentionForward, _ceca_obstacle),
)
