"""Adapters for the classes of torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from chattn_cuda.convert.adapter import Adapter, se_obstacle
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward, SqueezeExciteLayers

__all__ = ["ADAPTERS"]


class _SqueezeExcitation(SqueezeExciteForward):
    if TYPE_CHECKING:
        avgpool: Any
        activation: Any
        scale_activation: Any

    _unbatched = True

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        return SqueezeExciteLayers(
            self.fc1,
            None,
            self.activation,
            self.fc2,
            self.scale_activation,
            pool=self.avgpool,
        )


ADAPTERS: dict[str, Adapter] = {
    "torchvision.ops.misc.SqueezeExcitation": Adapter(
        _SqueezeExcitation, se_obstacle(_SqueezeExcitation)
    ),
}
