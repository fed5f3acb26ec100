"""The blocks of networks in which batch norms run with what follows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from chattn_cuda.convert.adapter import ADAPTERS, Adapter
from chattn_cuda.hooks import class_of, qualified_name
from chattn_cuda.modules.batch_norm import BATCH_NORMS
from chattn_cuda.modules.tails import TailForward
from chattn_cuda.modules.views import PARTS

__all__ = ["PATHS", "covered", "is_tail"]

_TIMM = {
    "layers.norm_act": ("BatchNormAct2d",),
    "layers.conv_bn_act": ("ConvNormAct",),
    "models.resnet": ("BasicBlock", "Bottleneck"),
    "models.resnest": ("ResNestBottleneck",),
    "models.sknet": ("SelectiveKernelBasic", "SelectiveKernelBottleneck"),
    "models.senet": (
        "SEBottleneck", "SEResNetBottleneck", "SEResNeXtBottleneck", "SEResNetBlock",
    ),
    "models.byobnet": (
        "BasicBlock", "BottleneckBlock", "DarkBlock", "EdgeBlock", "MobileOneBlock", "RepVggBlock",
    ),
    "models.ghostnet": ("GhostBottleneck", "GhostModule"),
    "models.regnet": ("Bottleneck", "PreBottleneck"),
    "models.rexnet": ("LinearBottleneck",),
    "models.tresnet": ("BasicBlock", "Bottleneck"),
    "models.vovnet": ("OsaBlock",),
    "models._efficientnet_blocks": (
        "ConvBnAct", "DepthwiseSeparableConv", "EdgeResidual", "InvertedResidual",
    ),
}  # fmt: skip
_TORCHVISION = {
    "models.resnet": ("BasicBlock", "Bottleneck"),
    "models.mobilenetv2": ("InvertedResidual",),
    "models.mobilenetv3": ("InvertedResidual",),
    "models.efficientnet": ("MBConv", "FusedMBConv"),
    "models.regnet": ("ResBottleneckBlock",),
}

#: Their qualified names.
PATHS = tuple(
    f"{library}.{module}.{name}"
    for library, classes in (("timm", _TIMM), ("torchvision", _TORCHVISION))
    for module, names in classes.items()
    for name in names
)


def is_tail(cls: Any) -> bool:
    """Whether a class is one of these blocks."""
    return cls is not None and qualified_name(cls) in PATHS


def covered(block: Any) -> Iterator[Any]:
    """The layers in a block that its view stands in for, though they are such blocks themselves."""
    for layer in block.children():
        cls = class_of(layer)
        known = qualified_name(cls) in PARTS
        if known:
            yield layer
        if known or (issubclass(cls, nn.Sequential) and cls.forward is nn.Sequential.forward):
            yield from covered(layer)


def _obstacle(module: Any) -> str | None:
    if any(isinstance(m, BATCH_NORMS) for m in module.modules()):
        return None
    return "it has no batch norm"


ADAPTERS.update({path: Adapter(TailForward, _obstacle, PARTS) for path in PATHS})
