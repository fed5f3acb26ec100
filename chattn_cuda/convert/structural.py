"""Adapters for modules that are known by what they consist of, whatever their class is called.

Each structure is that of a library whose classes people copy into their projects. A module has to
consist of exactly these submodules; what it computes is then tried out (`probe`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from chattn_cuda.activations import ActivationSpec
from chattn_cuda.convert.adapter import Adapter
from chattn_cuda.convert.probe import POOLS
from chattn_cuda.modules.fused import is_global_average_pool, submodule_obstacle
from chattn_cuda.modules.own_forward import OwnForward
from chattn_cuda.modules.se_relatives import SpatialChannelSqueezeExciteForward
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward, SqueezeExciteLayers
from chattn_cuda.peers.se import se_obstacle

__all__ = ["STRUCTURES"]


def _consists_of(module: nn.Module, *names: str) -> bool:
    return (
        set(module._modules) == set(names)
        and all(m is not None for m in module._modules.values())
        and not module._parameters
    )


def _is_pool_and(module: Any, name: str) -> bool:
    """A global pooling, and Sequential(layer, activation, layer, gate) called ``name``."""
    if not _consists_of(module, "avg_pool", name):
        return False
    layers = module._modules[name]
    return (
        is_global_average_pool(module.avg_pool)
        and type(layers) is nn.Sequential
        and len(layers) == 4
        and all(type(layers[i]) in (nn.Linear, nn.Conv2d) for i in (0, 2))
    )


def _layers_of(pool: nn.Module, sequence: nn.Sequential, name: str) -> SqueezeExciteLayers:
    if type(sequence) is not nn.Sequential or len(sequence) != 4:
        return SqueezeExciteLayers(
            None, None, "identity", None, "identity", changed=f"{name} is not four layers any more"
        )
    first, act, second, gate = sequence
    names = f"{name}.0", f"{name}.2"
    return SqueezeExciteLayers(
        first, None, act, second, gate, names=names, around=(sequence,), pool=pool
    )


class _AvgPoolFc(OwnForward, SqueezeExciteForward):
    """moskomule's SELayer (two Linear without bias) and MONAI's ChannelSELayer (with)."""

    if TYPE_CHECKING:
        avg_pool: Any
        fc: Any

    _any_rank = _eager_any_rank = True

    @torch.jit.unused
    def _axes(self) -> int:
        """As its pooling has them."""
        kind = next((kind for kind in POOLS if isinstance(self.avg_pool, kind)), None)
        return 4 if kind is None else 2 + POOLS[kind]

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        return _layers_of(self.avg_pool, self.fc, "fc")

    @classmethod
    def fits(cls, module: Any) -> bool:
        return _is_pool_and(module, "fc")


class _AvgPoolExcite(OwnForward, SqueezeExciteForward):
    """pycls's SE."""

    if TYPE_CHECKING:
        avg_pool: Any
        f_ex: Any

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        return _layers_of(self.avg_pool, self.f_ex, "f_ex")

    @classmethod
    def fits(cls, module: Any) -> bool:
        return _is_pool_and(module, "f_ex")


# Of an mmcv ConvModule that is a convolution and its activation.
_FLAGS = {"with_activation": True, "with_norm": False}


class _ConvModules(OwnForward, SqueezeExciteForward):
    """The SELayer of mmpretrain and mmdet: two ConvModules, each with conv and activate."""

    if TYPE_CHECKING:
        global_avgpool: Any
        conv1: Any
        conv2: Any

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        one, two = self.conv1, self.conv2
        changed = (f for f, v in _FLAGS.items() for m in (one, two) if bool(getattr(m, f, v)) != v)
        return SqueezeExciteLayers(
            one.conv,
            None,
            _named_activation(one.activate),
            two.conv,
            _named_activation(two.activate),
            names=("conv1.conv", "conv2.conv"),
            around=(one, two),
            pool=self.global_avgpool,
            changed=next((f"{flag} of its layers was changed" for flag in changed), None),
        )

    @classmethod
    def fits(cls, module: Any) -> bool:
        return (
            _consists_of(module, "global_avgpool", "conv1", "conv2")
            and is_global_average_pool(module.global_avgpool)
            and all(_consists_of(m, "conv", "activate") for m in (module.conv1, module.conv2))
            and all(type(m.conv) is nn.Conv2d for m in (module.conv1, module.conv2))
        )


def _named_activation(module: Any) -> ActivationSpec:
    """The HSigmoid(bias=3, divisor=6) of mmcv by its name; any other activation as it is."""
    if type(module).__name__ == "HSigmoid" and submodule_obstacle(module, "", type(module)) is None:
        settings = [getattr(module, n, None) for n in ("bias", "divisor", "min_value", "max_value")]
        if settings == [3, 6, 0, 1]:
            return "hard_sigmoid"
    return module


class _Scse(OwnForward, SpatialChannelSqueezeExciteForward):
    """The SCSEModule of segmentation_models_pytorch."""

    @classmethod
    def fits(cls, module: Any) -> bool:
        return _consists_of(module, "cSE", "sSE") and len(module.cSE) == 5


def _se(mixin: Any) -> Adapter:
    return Adapter(mixin, se_obstacle(mixin), fits=mixin.fits)


STRUCTURES: dict[str, Adapter] = {
    "avg_pool, fc": _se(_AvgPoolFc),
    "avg_pool, f_ex": _se(_AvgPoolExcite),
    "global_avgpool, conv1, conv2": _se(_ConvModules),
    "cSE, sSE": _se(_Scse),
}
