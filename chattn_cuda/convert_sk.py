"""What `accelerate` knows of selective kernels and split attention."""

from __future__ import annotations

from typing import Any

from chattn_cuda import validation
from chattn_cuda.modules.fused import FusedForward
from chattn_cuda.modules.selective_kernel import (
    SelectiveKernelAttnForward,
    SelectiveKernelForward,
    SplitAttnForward,
)

__all__ = ["FORWARDS", "obstacle"]

#: Class of a model library -> the forward to put in front of it.
FORWARDS: dict[str, type[FusedForward]] = {
    "timm.layers.selective_kernel.SelectiveKernelAttn": SelectiveKernelAttnForward,
    "timm.layers.selective_kernel.SelectiveKernel": SelectiveKernelForward,
    "timm.layers.split_attn.SplitAttn": SplitAttnForward,
}


def obstacle(module: Any) -> str | None:
    """Lasting obstacles only; the layers in between are called, whatever they are."""
    count = module.radix if hasattr(module, "radix") else module.num_paths
    least = 2 if hasattr(module, "radix") else 1
    if not least <= count <= validation.MAX_BRANCHES:
        return f"the kernels take {least} to {validation.MAX_BRANCHES} branches, it has {count}"
    return None
