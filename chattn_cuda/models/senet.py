"""The networks of the SENet paper that stand on ResNets: SE-ResNet, SE-ResNeXt, SENet-154.

Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507: the block is applied to the residual
branch before the addition. timm's ``legacy_*`` networks are those of the authors' release (the
stride of SE-ResNet's stages in the first 1x1 convolution, biases in the blocks) and their
state_dict keys, ``layer1.0.se_module.fc1.weight``, are those of the converted weights.

The paper's parameter counts are rounded up to 0.1 M (table 10: 45.7, 35.7, 30.7, 28.1 and 26.9 M
for r = 2, 4, 8, 16 and 32). Its GFLOPs are multiply-adds at 224 x 224, the block's pooling and
scaling included: 3.86 for ResNet-50, 3.87 for SE-ResNet-50.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from chattn_cuda.models.compose import check_reduction, library, squeeze_excite, swap, timm_model

__all__ = ["se_resnet101", "se_resnet152", "se_resnet50", "se_resnext50", "senet154"]


def se_resnet50(reduction: int = 16, *, backend: str = "auto", **kwargs: Any) -> nn.Module:
    """SE-ResNet-50: 28,088,024 parameters at r = 16 (paper: 28.1 M, 3.87 GFLOPs).

    Hu et al., arXiv 1709.01507, tables 2 and 10.

    Args:
        reduction: r: a block on C channels has C // r hidden values.
        backend: Of the blocks: "auto" or one of `chattn_cuda.backends.names()`.
        **kwargs: For ``timm.create_model``: ``num_classes``, ``in_chans``, ...

    Returns:
        The network in training mode, with random weights, for (N, 3, H, W) images.

    Raises:
        ImportError: timm is not installed.
        TypeError: ``reduction`` is not an integer.
        ValueError: ``reduction`` is below 1 or above 256; unknown backend.
    """
    return _senet("legacy_seresnet50", reduction, backend, kwargs)


def se_resnet101(reduction: int = 16, *, backend: str = "auto", **kwargs: Any) -> nn.Module:
    """SE-ResNet-101: 49,326,872 parameters at r = 16 (the authors' file: 189 MiB).

    7.59 GFLOPs; the paper says 7.60. Arguments and errors are those of `se_resnet50`.
    """
    return _senet("legacy_seresnet101", reduction, backend, kwargs)


def se_resnet152(reduction: int = 16, *, backend: str = "auto", **kwargs: Any) -> nn.Module:
    """SE-ResNet-152: 66,821,848 parameters at r = 16 (published by timm: 66.82 M).

    11.32 GFLOPs, as in the paper. Arguments and errors are those of `se_resnet50`.
    """
    return _senet("legacy_seresnet152", reduction, backend, kwargs)


def se_resnext50(reduction: int = 16, *, backend: str = "auto", **kwargs: Any) -> nn.Module:
    """SE-ResNeXt-50 (32 x 4d): 27,559,896 parameters at r = 16 (the authors' file: 105 MiB).

    4.24 GFLOPs; the paper says 4.25. Arguments and errors are those of `se_resnet50`.
    """
    return _senet("legacy_seresnext50_32x4d", reduction, backend, kwargs)


def senet154(reduction: int = 16, *, backend: str = "auto", **kwargs: Any) -> nn.Module:
    """SENet-154: 115,088,984 parameters at r = 16 (the authors' file: 440 MiB).

    The network of the ILSVRC 2017 submission (the paper's appendix): an SE-ResNeXt-152 (64 x 4d)
    with a stem of three 3x3 convolutions, half as many channels in the first convolution of a
    bottleneck and dropout before the classifier. Arguments and errors are those of `se_resnet50`.
    """
    return _senet("legacy_senet154", reduction, backend, kwargs)


def _senet(name: str, reduction: int, backend: str, kwargs: dict[str, Any]) -> nn.Module:
    check_reduction(reduction, 256)
    cls = library("timm.models.senet").SEModule
    model = timm_model(name, reduction=reduction, **kwargs)
    return swap(model, cls, lambda m: squeeze_excite(m.fc1.in_channels, reduction, backend))
