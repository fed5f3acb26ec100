"""Adapters for timm's selective kernels and split attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from chattn_cuda import validation
from chattn_cuda.convert.adapter import Adapter
from chattn_cuda.modules.selective_kernel import (
    SelectiveKernelAttnForward,
    SelectiveKernelForward,
)
from chattn_cuda.modules.split_attention import SplitAttnForward

__all__ = ["ADAPTERS"]


_PATH = ("timm.layers.conv_bn_act.ConvNormAct", "timm.layers.norm_act.BatchNormAct2d")


def _obstacle(*parts: str) -> Callable[[Any], str | None]:
    """Lasting obstacles only; the layers in between are called, whatever they are."""

    def obstacle(module: Any) -> str | None:
        for path in parts:
            functools.reduce(getattr, path.split("."), module)
        count = module.radix if hasattr(module, "radix") else module.num_paths
        least = 2 if hasattr(module, "radix") else 1
        if not least <= count <= validation.MAX_BRANCHES:
            return f"the kernels take {least} to {validation.MAX_BRANCHES} branches, it has {count}"
        return None

    return obstacle


ADAPTERS: dict[str, Adapter] = {
    "timm.layers.selective_kernel.SelectiveKernelAttn": Adapter(
        SelectiveKernelAttnForward, _obstacle("fc_reduce", "bn", "act", "fc_select")
    ),
    "timm.layers.selective_kernel.SelectiveKernel": Adapter(
        SelectiveKernelForward,
        _obstacle(
            "paths", "in_channels", "split_input",
            "attn.fc_reduce", "attn.bn", "attn.act", "attn.fc_select",
        ),
        ("timm.layers.selective_kernel.SelectiveKernelAttn", *_PATH),
    ),
    "timm.layers.split_attn.SplitAttn": Adapter(
        SplitAttnForward,
        _obstacle("conv", "bn0", "drop", "act0", "fc1", "bn1", "act1", "fc2", "rsoftmax"),
        ("timm.layers.split_attn.RadixSoftmax", *_PATH[1:]),
    ),
}  # fmt: skip
