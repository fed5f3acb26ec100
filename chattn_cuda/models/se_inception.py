"""The networks of the SENet paper that stand on Inception: SE-Inception and SE-Inception-ResNet."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda.models.compose import check_reduction, library, squeeze_excite, timm_model

__all__ = ["se_inception", "se_inception_resnet_v2"]

# Of every module: channels of the 1x1 branch; of the 3x3 branch, reduced and final; of the double
# 3x3 branch, reduced and final; the pooling, and the channels of its projection. Modules without a
# 1x1 branch halve the map, and pass their pooled input on.
_INCEPTION: dict[str, tuple[int, tuple[int, int], tuple[int, int], str, int]] = {
    "3a": (64, (64, 64), (64, 96), "avg", 32),
    "3b": (64, (64, 96), (64, 96), "avg", 64),
    "3c": (0, (128, 160), (64, 96), "max", 0),
    "4a": (224, (64, 96), (96, 128), "avg", 128),
    "4b": (192, (96, 128), (96, 128), "avg", 128),
    "4c": (160, (128, 160), (128, 160), "avg", 128),
    "4d": (96, (128, 192), (160, 192), "avg", 128),
    "4e": (0, (128, 192), (192, 256), "max", 0),
    "5a": (352, (192, 320), (160, 224), "avg", 128),
    "5b": (352, (192, 320), (192, 224), "max", 128),
}


class Branches(nn.ModuleList):
    """Branches on the same input, concatenated along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """From (N, C, H, W) to (N, C of all branches, H', W')."""
        return torch.cat([branch(x) for branch in self], 1)


def se_inception(
    reduction: int = 16, *, num_classes: int = 1000, in_chans: int = 3, backend: str = "auto"
) -> nn.Module:
    """SE-Inception: BN-Inception with a block on the output of each of its ten modules.

    Hu et al., arXiv 1709.01507, figure 2 and table 2 (SE-BN-Inception: 2.04 GFLOPs; the authors'
    model file has 46 MiB). BN-Inception is that of Ioffe and Szegedy, arXiv 1502.03167, figure 5,
    with the 128 channels in the pooling branches of 4c and 4d that the released model has, and no
    biases before batch norms: 11,931,622 parameters at r = 16, of them 646,398 in the blocks.

    Args:
        reduction: r: a block on C channels has C // r hidden values.
        num_classes: Outputs.
        in_chans: Channels of the image.
        backend: Of the blocks: "auto" or one of `chattn_cuda.backends.names()`.

    Returns:
        The network in training mode, with random weights, for (N, in_chans, H, W) images.

    Raises:
        ImportError: torchvision is not installed.
        TypeError: ``reduction`` is not an integer.
        ValueError: ``reduction`` is below 1 or above 256; unknown backend.
    """
    check_reduction(reduction, 256)
    conv = library("torchvision.ops").Conv2dNormActivation
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=conv(in_chans, 64, 7, stride=2),
        pool1=nn.MaxPool2d(3, 2, padding=1),
        conv2_reduce=conv(64, 64, 1),
        conv2=conv(64, 192, 3),
        pool2=nn.MaxPool2d(3, 2, padding=1),
    )
    channels = 192
    for name, (one, three, double, pool, projected) in _INCEPTION.items():
        stride = 1 if one else 2
        branches = Branches([conv(channels, one, 1)] if one else [])
        branches.append(
            nn.Sequential(conv(channels, three[0], 1), conv(three[0], three[1], 3, stride=stride))
        )
        branches.append(
            nn.Sequential(
                conv(channels, double[0], 1),
                conv(double[0], double[1], 3),
                conv(double[1], double[1], 3, stride=stride),
            )
        )
        pooling = nn.AvgPool2d if pool == "avg" else nn.MaxPool2d
        pooled: list[nn.Module] = [pooling(3, stride, padding=1)]
        if projected:
            pooled.append(conv(channels, projected, 1))
        branches.append(nn.Sequential(*pooled))
        channels = one + three[1] + double[1] + (projected or channels)
        layers[f"inception_{name}"] = _with_block(branches, channels, reduction, backend)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)


def se_inception_resnet_v2(
    reduction: int = 16, *, backend: str = "auto", **kwargs: Any
) -> nn.Module:
    """SE-Inception-ResNet-v2: a block in every residual branch and on every Inception module.

    Hu et al., arXiv 1709.01507, table 2, on timm's Inception-ResNet-v2 (Szegedy et al., arXiv
    1602.07261; 55,843,464 parameters, published as 55.84 M): in the forty residual modules after
    the last convolution, before the branch is scaled and added, and after Mixed_5b, 6a and 7a:
    65,092,718 parameters at r = 16. The paper publishes no count. Its GFLOPs, 11.75 and 11.76, are
    those of another implementation of the base network; the blocks add as little here, 0.1 %.

    Args:
        reduction: r: a block on C channels has C // r hidden values.
        backend: Of the blocks: "auto" or one of `chattn_cuda.backends.names()`.
        **kwargs: For ``timm.create_model``: ``num_classes``, ``in_chans``, ...

    Returns:
        The network in training mode, with random weights, for (N, 3, H, W) images with H and W at
        least 75.

    Raises:
        ImportError: timm is not installed.
        TypeError: ``reduction`` is not an integer.
        ValueError: ``reduction`` is below 1 or above 320; unknown backend.
    """
    check_reduction(reduction, 320)
    model: Any = timm_model("inception_resnet_v2", **kwargs)
    for name, channels in (("mixed_5b", 320), ("mixed_6a", 1088), ("mixed_7a", 2080)):
        mixed = getattr(model, name)
        setattr(model, name, _with_block(mixed, channels, reduction, backend))
    for residual in (*model.repeat, *model.repeat_1, *model.repeat_2, model.block8):
        last = residual.conv2d
        residual.conv2d = _with_block(last, last.out_channels, reduction, backend)
    return model


def _with_block(module: nn.Module, channels: int, reduction: int, backend: str) -> nn.Module:
    block = squeeze_excite(channels, reduction, backend)
    return nn.Sequential(OrderedDict(branches=module, se=block))
