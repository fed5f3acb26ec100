"""The tails that are measured, of timm's layers: what stands behind the convolutions of a block."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from chattn_cuda.convert.adapter import ADAPTERS
from chattn_cuda.modules.deferred import values
from chattn_cuda.modules.views import Run, View
from chattn_cuda.peers import Measured

__all__ = ["TAILS"]

_NORM = "timm.layers.norm_act.BatchNormAct2d"
_DEPTHWISE = "timm.models._efficientnet_blocks.DepthwiseSeparableConv"


class _Residual(nn.Module):
    """What a residual block does behind its last convolution; the shortcut is a map of its own."""

    def __init__(self, has_gate: bool, cls: Any, channels: int) -> None:
        from timm.layers.squeeze_excite import SEModule

        super().__init__()
        self.bn = cls(channels, apply_act=False)
        self.se = SEModule(channels) if has_gate else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, u: Tensor, shortcut: Tensor) -> Tensor:
        backend = getattr(self.bn, "_backend", None)  # once it is accelerated
        parts: Any = self if backend is None else View(Run(backend), self)
        x = parts.se(parts.bn(u))
        x += shortcut
        y: Tensor = values(parts.act(x))
        return y


def _without_convolutions(cls: Any, channels: int) -> nn.Module:
    """EfficientNet's block; what is left is tail B."""
    from timm.models._efficientnet_blocks import SqueezeExcite

    gate = functools.partial(SqueezeExcite, rd_ratio=0.25)
    block: nn.Module = cls(channels, channels, act_layer=nn.SiLU, se_layer=gate, noskip=True)
    for name in ("conv_dw", "conv_pw", "bn2"):
        setattr(block, name, nn.Identity())
    return block


def _tail(name: str, title: str, path: str = _NORM, **more: Any) -> Measured:
    adapter = ADAPTERS[path]
    return Measured(
        path, adapter.mixin, adapter.obstacle, adapter.parts, name=name, title=title, fuse="tail",
        **more,
    )  # fmt: skip


#: In the order of their tables.
TAILS = (
    _tail("tail_a", "Batch norm, SE, addition, ReLU", maps=2, edge="act",
          build=functools.partial(_Residual, True)),
    _tail("tail_plain", "Batch norm, addition, ReLU", maps=2, edge="act", compiled=False,
          build=functools.partial(_Residual, False)),
    _tail("tail_b", "Batch norm, SiLU, SE", _DEPTHWISE, build=_without_convolutions),
    _tail("tail_pair", "Batch norm, ReLU", edge="act", compiled=False),
)  # fmt: skip
