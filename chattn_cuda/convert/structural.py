"""The adapter for modules that consist of two branches, whatever their class is called."""

from __future__ import annotations

from typing import Any

from chattn_cuda.convert.adapter import Adapter
from chattn_cuda.modules.own_forward import OwnForward
from chattn_cuda.modules.se_relatives import SpatialChannelSqueezeExciteForward
from chattn_cuda.peers.se import se_obstacle

__all__ = ["STRUCTURES"]


class _Scse(OwnForward, SpatialChannelSqueezeExciteForward):
    """The SCSEModule of segmentation_models_pytorch."""

    @classmethod
    def fits(cls, module: Any) -> bool:
        names, plain = set(module._modules), not module._parameters
        return plain and names == {"cSE", "sSE"} and len(module.cSE) == 5


STRUCTURES: dict[str, Adapter] = {
    "cSE, sSE": Adapter(
        _Scse,
        se_obstacle(_Scse),
        fits=_Scse.fits,
        recorded="pool-layer-act-layer-act-mul-conv-act-other-add",
    ),
}
