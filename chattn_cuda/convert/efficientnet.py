"""The adapter for lukemelas' EfficientNet, whose blocks compute SE inside their forward.

The same in segmentation_models_pytorch, where a block without expansion has Identities for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from chattn_cuda.convert import inside
from chattn_cuda.convert.adapter import Adapter
from chattn_cuda.functional import Decision
from chattn_cuda.hooks import own_behaviour
from chattn_cuda.modules import memory
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward, SqueezeExciteLayers
from chattn_cuda.peers.se import se_obstacle

__all__ = ["STRUCTURES"]

_ALWAYS = {"_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2", "_swish"}
_EXPANDED = {"_expand_conv", "_bn0"}
#: Its convolutions, which pad as TensorFlow does: a 1x1 convolution not at all.
_CONVOLUTIONS = ("Conv2d", "Conv2dStaticSamePadding", "Conv2dDynamicSamePadding")
_SWISHES = ("Swish", "MemoryEfficientSwish")


class _WithoutSE:
    """A block as its own forward sees it: without SE, which ``_project_conv`` does beforehand."""

    has_se = _has_se = False

    def __init__(self, block: Any) -> None:
        self.block = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self.block, name)

    def _project_conv(self, x: Tensor) -> Tensor:
        block = self.block
        return block._project_conv(block.excite(x) if _has_se(block) else x)


def _has_se(block: Any) -> bool:
    own = block.__dict__
    return bool(own["has_se"] if "has_se" in own else own.get("_has_se", False))


class _MBConvBlock(SqueezeExciteForward):
    """Expansion, depthwise convolution, SE, projection, and a shortcut with stochastic depth.

    All but SE stays the class's own forward, whatever it does.
    """

    if TYPE_CHECKING:
        _depthwise_conv: Any
        _se_reduce: Any
        _se_expand: Any
        _swish: Any
        _modules: Any

    @torch.jit.unused
    def _fused_or_eager(self, inputs: Tensor, drop_connect_rate: Any = None) -> Tensor:
        """The block on a map (N, C, H, W)."""
        cls: Any = type(self)
        known = not torch.compiler.is_compiling() and memory.recall(self) is not None
        block = self if not known and inside.why_changed(self, cls._inside) else _WithoutSE(self)
        y: Tensor = cls.eager_forward(block, inputs, drop_connect_rate)
        return y

    @torch.jit.unused
    def excite(self, x: Tensor) -> Tensor:
        """SE on the map between the depthwise convolution and the projection."""
        plain = isinstance(x, Proxy) or self._is_plain(x)
        y = None if plain else self.fused_forward(x)
        if y is not None:
            return y
        s = self._se_expand(self._swish(self._se_reduce(F.adaptive_avg_pool2d(x, 1))))
        return torch.sigmoid(s) * x

    @torch.jit.unused
    def decide(self, x: Tensor) -> Decision:
        """What SE comes to, for the block's input."""
        found = self.operands()
        if not isinstance(found, str) and found.channels is not None and x.dim() == 4:
            x = x[:, :1].expand(-1, found.channels, -1, -1)  # as the depthwise convolution's map
        return self._decide(x, found)

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        first, second = self._se_reduce, self._se_expand
        return SqueezeExciteLayers(
            first,
            None,
            "silu" if _is_swish(self._swish) else self._swish,
            second,
            "sigmoid",
            names=("_se_reduce", "_se_expand"),
            around=(*first.children(), *second.children()),
            kinds=tuple(type(m) for m in (first, second) if type(m).__name__ in _CONVOLUTIONS),
        )

    @torch.jit.unused
    def probe_channels(self) -> int:
        """Of the block's input."""
        first = self._modules.get("_expand_conv")
        return getattr(first, "in_channels", self._depthwise_conv.in_channels)

    @classmethod
    def fits(cls, module: Any) -> bool:
        names = set(module._modules)
        return (
            names in (_ALWAYS, _ALWAYS | _EXPANDED)
            and not module._parameters
            and _has_se(module)
            and all(isinstance(m, nn.Conv2d) for m in (module._se_reduce, module._se_expand))
        )


def _is_swish(module: Any) -> bool:
    plain = own_behaviour(module) is None and next(module.parameters(), None) is None
    return type(module).__name__ in _SWISHES and plain


STRUCTURES: dict[str, Adapter] = {
    "_depthwise_conv, _se_reduce, _se_expand": Adapter(
        _MBConvBlock,
        se_obstacle(_MBConvBlock),
        fits=_MBConvBlock.fits,
        within=("_se_reduce", "_swish", "_se_expand"),
        recorded="(.*-)?conv-norm-act-pool-layer-act-layer-act-mul-conv-norm(-.*)?",
    ),
}
