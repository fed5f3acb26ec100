"""Adapters for timm's selective kernels and split attention."""

from __future__ import annotations

from typing import Any

from chattn_cuda import validation
from chattn_cuda.convert.adapter import Adapter
from chattn_cuda.modules.selective_kernel import (
    SelectiveKernelAttnForward,
    SelectiveKernelForward,
)
from chattn_cuda.modules.split_attention import SplitAttnForward

__all__ = ["ADAPTERS"]


def _obstacle(module: Any) -> str | None:
    """Lasting obstacles only; the layers in between are called, whatever they are."""
    count = module.radix if hasattr(module, "radix") else module.num_paths
    least = 2 if hasattr(module, "radix") else 1
    if not least <= count <= validation.MAX_BRANCHES:
        return f"the kernels take {least} to {validation.MAX_BRANCHES} branches, it has {count}"
    return None


ADAPTERS: dict[str, Adapter] = {
    "timm.layers.selective_kernel.SelectiveKernelAttn": Adapter(
        SelectiveKernelAttnForward, _obstacle
    ),
    "timm.layers.selective_kernel.SelectiveKernel": Adapter(SelectiveKernelForward, _obstacle),
    "timm.layers.split_attn.SplitAttn": Adapter(SplitAttnForward, _obstacle),
}
