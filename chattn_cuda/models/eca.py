"""The networks of the ECA paper: ECA-ResNet and ECA-MobileNetV2.

Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", arXiv
1910.03151. The authors' checkpoints have a k for every stage that does not follow the paper's rule;
these are the defaults. Their state dicts load by ``load_state_dict``, with or without the
``module.`` that DataParallel puts in front of every key. The paper counts in units of 2**20
parameters: its 24.37 M are 25,557,112.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import nn

from chattn_cuda.models.compose import library, timm_model
from chattn_cuda.modules import EfficientChannelAttention

__all__ = [
    "eca_mobilenetv2",
    "eca_resnet101",
    "eca_resnet152",
    "eca_resnet18",
    "eca_resnet34",
    "eca_resnet50",
]


def eca_resnet18(
    kernel_sizes: Sequence[int] = (3, 5, 7, 7), *, backend: str = "auto", **kwargs: Any
) -> nn.Module:
    """ECA-ResNet-18: 11,689,556 parameters (published: 11.15 * 2**20).

    Arguments and errors are those of `eca_resnet50`.
    """
    return _eca_resnet("resnet18", 64, kernel_sizes, backend, kwargs)


def eca_resnet34(
    kernel_sizes: Sequence[int] = (3, 3, 5, 7), *, backend: str = "auto", **kwargs: Any
) -> nn.Module:
    """ECA-ResNet-34: 21,797,744 parameters (published: 20.79 * 2**20).

    Arguments and errors are those of `eca_resnet50`.
    """
    return _eca_resnet("resnet34", 64, kernel_sizes, backend, kwargs)


def eca_resnet50(
    kernel_sizes: Sequence[int] = (3, 5, 5, 7), *, backend: str = "auto", **kwargs: Any
) -> nn.Module:
    """ECA-ResNet-50: 25,557,112 parameters, 80 of them ECA's (published: 24.37 * 2**20).

    Wang et al., arXiv 1910.03151, table 3. The block follows the last batch norm of the residual
    branch.

    Args:
        kernel_sizes: k of the four stages; odd. The authors' checkpoint is "k3557".
        backend: Of the blocks: "auto" or one of `chattn_cuda.backends.names()`.
        **kwargs: For ``timm.create_model``: ``num_classes``, ``in_chans``, ...

    Returns:
        The network in training mode, with random weights, for (N, 3, H, W) images. Its own keys are
        timm's, ``layer1.0.se.conv.weight``; the authors' ``layer1.0.eca.conv.weight`` load too.

    Raises:
        ImportError: timm is not installed.
        TypeError: A kernel size is not an integer.
        ValueError: Not four kernel sizes, or an even one; unknown backend.
    """
    return _eca_resnet("resnet50", 256, kernel_sizes, backend, kwargs)


def eca_resnet101(
    kernel_sizes: Sequence[int] = (3, 3, 5, 7), *, backend: str = "auto", **kwargs: Any
) -> nn.Module:
    """ECA-ResNet-101: 44,549,317 parameters (published: 42.49 * 2**20).

    Arguments and errors are those of `eca_resnet50`.
    """
    return _eca_resnet("resnet101", 256, kernel_sizes, backend, kwargs)


def eca_resnet152(
    kernel_sizes: Sequence[int] = (3, 3, 5, 7), *, backend: str = "auto", **kwargs: Any
) -> nn.Module:
    """ECA-ResNet-152: 60,193,042 parameters.

    Published as 57.41 * 2**20, beside 57.40 * 2**20 for ResNet-152; the difference is more than
    the 234 weights of the blocks, with which it is 57.40 too. Arguments and errors are those of
    `eca_resnet50`.
    """
    return _eca_resnet("resnet152", 256, kernel_sizes, backend, kwargs)


def eca_mobilenetv2(widest_k1: int = 95, *, backend: str = "auto", **kwargs: Any) -> nn.Module:
    """ECA-MobileNetV2: 3,504,903 parameters (published: 3.34 * 2**20).

    Wang et al., arXiv 1910.03151, table 3: a block after the linear 1x1 convolution (and its batch
    norm) of every inverted residual, with k = 1 in narrow stages and k = 3 in wide ones.

    Args:
        widest_k1: The most channels of a block with k = 1. The authors' code had k = 1 for C < 96
            in one version, for C <= 96 in another (which is ``widest_k1=96``).
        backend: Of the blocks: "auto" or one of `chattn_cuda.backends.names()`.
        **kwargs: For ``torchvision.models.mobilenet_v2``: ``num_classes``, ``width_mult``, ...

    Returns:
        The network in training mode, with random weights, for (N, 3, H, W) images; its keys are the
        authors' (``features.1.conv.3.conv.weight``).

    Raises:
        ImportError: torchvision is not installed.
        ValueError: Unknown backend.
    """
    mobilenetv2 = library("torchvision.models.mobilenetv2")
    model: nn.Module = mobilenetv2.mobilenet_v2(**kwargs)
    for block in model.modules():
        if isinstance(block, mobilenetv2.InvertedResidual):
            k = 1 if block.out_channels <= widest_k1 else 3
            block.conv.append(EfficientChannelAttention(kernel_size=k, backend=backend))
    model.register_load_state_dict_pre_hook(_authors_keys)
    return model


def _eca_resnet(
    name: str, width: int, kernel_sizes: Sequence[int], backend: str, kwargs: dict[str, Any]
) -> nn.Module:
    if len(kernel_sizes) != 4:
        raise ValueError(f"kernel_sizes must be of the four stages, got {len(kernel_sizes)}")
    # A stage is known by its channels: timm's attn_layer is told nothing else.
    k_of = {width * 2**stage: k for stage, k in enumerate(kernel_sizes)}
    attention = functools.partial(_attention, k_of, backend)
    model = timm_model(name, block_args={"attn_layer": attention}, **kwargs)
    model.register_load_state_dict_pre_hook(_authors_keys)
    return model


def _attention(
    k_of: dict[int, int], backend: str, channels: int, **factory: Any
) -> EfficientChannelAttention:
    return EfficientChannelAttention(kernel_size=k_of[channels], backend=backend, **factory)


def _authors_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the keys of the authors' checkpoints to those of ``module``."""
    for key in [k for k in state_dict if k.startswith(prefix)]:
        name = key[len(prefix) :].removeprefix("module.").replace(".eca.", ".se.")
        if prefix + name != key:
            state_dict[prefix + name] = state_dict.pop(key)
