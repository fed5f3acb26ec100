"""The peers of efficient channel attention."""

from __future__ import annotations

from typing import Any

from torch import nn

from chattn_cuda.modules.efficient_channel_attention import (
    CircularEfficientChannelAttentionForward,
    EfficientChannelAttentionForward,
)
from chattn_cuda.modules.layers import gate_of, submodule_obstacle
from chattn_cuda.peers.peer import Measured, Peer

__all__ = ["PEERS", "conv_obstacle"]


def _eca_obstacle(module: Any) -> str | None:
    if module.conv2 is not None:
        return "the kernels do not know the gate with an MLP (use_mlp)"
    return conv_obstacle(module.conv, module.gate)


def _ceca_obstacle(module: Any) -> str | None:
    padding = module.padding
    if type(module.conv) is nn.Conv1d and padding != module.conv.kernel_size[0] // 2:
        return f"padding is {padding}"
    return conv_obstacle(module.conv, module.gate)


def conv_obstacle(conv: Any, gate: Any, name: str = "gate") -> str | None:
    """What will not go away by itself of a convolution over channels and its gate."""
    if type(conv) is not nn.Conv1d:
        return submodule_obstacle(conv, "conv", nn.Conv1d)
    if conv.bias is not None:
        return "conv has a bias"
    found = gate_of(gate, name)
    return found if isinstance(found, str) else None


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
