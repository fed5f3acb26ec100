"""The peer of global response normalisation."""

from __future__ import annotations

from typing import Any

import torch

from chattn_cuda.modules.fused import Operands
from chattn_cuda.modules.global_response_norm import GlobalResponseNormForward, eps_obstacle
from chattn_cuda.modules.own_forward import OwnForward
from chattn_cuda.peers.peer import Measured, Peer

__all__ = ["PEERS"]

#: By channel_dim.
_FORMS = {1: ((2, 3), (1, -1, 1, 1)), -1: ((1, 2), (1, 1, 1, -1))}


def _obstacle(module: Any) -> str | None:
    channel, positions, shape = module.channel_dim, module.spatial_dim, module.wb_shape
    if _FORMS.get(channel, ((), ()))[0] != positions:
        return f"channel_dim is {channel} and spatial_dim {positions}"
    if _FORMS[channel][1] != shape:
        return f"wb_shape is {shape}"
    return eps_obstacle(module)


class _Timm(OwnForward, GlobalResponseNormForward):
    _block = "GlobalResponseNorm"
    _reads = (*GlobalResponseNormForward._reads, "spatial_dim", "wb_shape")

    @torch.jit.unused
    def operands(self: Any) -> Operands | str:
        return _obstacle(self) or super().operands()


PEERS: tuple[Peer, ...] = (
    Measured(
        "timm.layers.grn.GlobalResponseNorm",
        _Timm,
        _obstacle,
        models=("convnextv2_atto",),
        name="grn",
        title="Global Response Normalization",
        build=lambda cls, channels: cls(channels, channels_last=False),
    ),
)
