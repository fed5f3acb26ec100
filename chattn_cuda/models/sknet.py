"""The networks of the selective-kernel paper: SKNet-26, SKNet-50, SKNet-101, and one for CIFAR.

Li et al., "Selective Kernel Networks", arXiv 1903.06586, table 1: ResNeXt (32 x 4d) whose grouped
3x3 convolutions are selective kernels SK[M=2, G=32, r=16] with d = max(C / r, 32). Keys and weights
are those of timm's ``skresnext50_32x4d``.

Two of the paper's three parameter counts are not those of its network: the authors' published
definition, which has no bias but the classifier's, gives 16.75, 27.48 and 48.74 M where the paper
says 16.8, 27.5 and 48.9. A bias in every convolution would give all three (16.78, 27.54, 48.86).
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from chattn_cuda import validation
from chattn_cuda.models.compose import check_reduction, library, timm_model
from chattn_cuda.modules import SelectiveKernel, SKNet

__all__ = ["sknet26", "sknet50", "sknet101", "sknet_cifar"]

_NARROWEST = 128  # C of the first stage's selective kernels; it doubles from stage to stage


def sknet26(
    reduction: int = 16,
    branches: int = 2,
    groups: int = 32,
    min_channels: int = 32,
    *,
    backend: str = "auto",
    **kwargs: Any,
) -> nn.Module:
    """SKNet-26: 16,746,408 parameters (paper: 16.8 M; see the module's text).

    Stages of 2, 2, 2 and 2 units. Arguments and errors are those of `sknet50`.
    """
    sizes = (reduction, branches, groups, min_channels)
    return _sknet((2, 2, 2, 2), *sizes, backend, kwargs)


def sknet50(
    reduction: int = 16,
    branches: int = 2,
    groups: int = 32,
    min_channels: int = 32,
    *,
    backend: str = "auto",
    **kwargs: Any,
) -> nn.Module:
    """SKNet-50: 27,479,784 parameters, 4.47 GFLOPs (multiply-adds), as in the paper.

    Li et al., arXiv 1903.06586, tables 1 and 2: stages of 3, 4, 6 and 3 units.

    Args:
        reduction: r: a selective kernel on C channels has max(C // r, L) hidden values.
        branches: M: 3x3 convolutions with dilation 1 to M; more than 4 run as plain PyTorch.
        groups: G of these convolutions; divides 128.
        min_channels: L.
        backend: Of the blocks: "auto" or one of `chattn_cuda.backends.names()`.
        **kwargs: For ``timm.create_model``: ``num_classes``, ``in_chans``, ...

    Returns:
        The network in training mode, with random weights, for (N, 3, H, W) images.

    Raises:
        ImportError: timm is not installed.
        TypeError: ``reduction``, ``branches``, ``groups`` or ``min_channels`` is not an integer.
        ValueError: One of them is below 1, ``reduction`` above 128, or ``groups`` does not divide
            128; unknown backend.
    """
    sizes = (reduction, branches, groups, min_channels)
    return _sknet((3, 4, 6, 3), *sizes, backend, kwargs)


def sknet101(
    reduction: int = 16,
    branches: int = 2,
    groups: int = 32,
    min_channels: int = 32,
    *,
    backend: str = "auto",
    **kwargs: Any,
) -> nn.Module:
    """SKNet-101: 48,736,040 parameters (paper: 48.9 M; see the module's text), 8.46 GFLOPs.

    Stages of 3, 4, 23 and 3 units. Arguments and errors are those of `sknet50`.
    """
    sizes = (reduction, branches, groups, min_channels)
    return _sknet((3, 4, 23, 3), *sizes, backend, kwargs)


def sknet_cifar(num_classes: int = 10, *, fc: str = "paper", backend: str = "auto") -> nn.Module:
    """The small network `chattn_cuda.modules.SKNet`, for images of 32 x 32 pixels.

    Three stages of three units SK[M=2, G=8, r=2] on 128, 256 and 512 channels, which put out 256,
    512 and 1024. It needs no other library.

    Args:
        num_classes: Width of the classifier.
        fc: "paper" or "plain"; see `chattn_cuda.modules.SelectiveKernelConv`.
        backend: Of the blocks: "auto" or one of `chattn_cuda.backends.names()`.

    Returns:
        The network in training mode, with random weights, for (N, 3, H, W) images.

    Raises:
        TypeError: ``num_classes`` is not an integer.
        ValueError: ``num_classes`` is below 1; another ``fc``; unknown backend.
    """
    validation.check_positive(num_classes, "num_classes")
    return SKNet(num_classes, fc=fc, backend=backend)


def _sknet(
    layers: tuple[int, ...],
    reduction: int,
    branches: int,
    groups: int,
    min_channels: int,
    backend: str,
    kwargs: dict[str, Any],
) -> nn.Module:
    check_reduction(reduction, _NARROWEST)
    for value, name in ((branches, "branches"), (groups, "groups"), (min_channels, "min_channels")):
        validation.check_positive(value, name)
    if _NARROWEST % groups:
        raise ValueError(f"groups must divide {_NARROWEST}, got {groups}")
    bottleneck = library("timm.models.sknet").SelectiveKernelBottleneck

    # Not a function in here: models are pickled with what they are made of.
    options = (reduction, branches, groups, min_channels, backend)
    unit: Any = functools.partial(_unit, bottleneck, options)
    unit.expansion = bottleneck.expansion
    kwargs = {"layers": layers, **kwargs}
    width = {"cardinality": groups, "base_width": _NARROWEST // groups}
    return timm_model("skresnext50_32x4d", block=unit, **width, **kwargs)


def _unit(
    bottleneck: Any,
    options: tuple[int, int, int, int, str],
    inplanes: int,
    planes: int,
    stride: int = 1,
    *args: Any,
    **given: Any,
) -> nn.Module:
    """timm's, with our selective kernel in it."""
    reduction, branches, groups, min_channels, backend = options
    made: nn.Module = bottleneck(inplanes, planes, stride, *args, **given)
    theirs: Any = made.conv2
    passed = ("act_layer", "norm_layer", "aa_layer", "device", "dtype")
    made.conv2 = SelectiveKernel(
        theirs.in_channels,
        theirs.out_channels,
        [3 + 2 * m for m in range(branches)],
        stride,
        given.get("first_dilation") or given.get("dilation", 1),
        groups,
        rd_channels=max(theirs.out_channels // reduction, min_channels),
        split_input=False,
        drop_layer=given.get("drop_block"),
        backend=backend,
        **{name: given[name] for name in passed if given.get(name) is not None},
    )
    return made
