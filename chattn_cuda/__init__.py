"""Fused channel attention for PyTorch: squeeze, gate and rescale in as few passes as possible."""

from __future__ import annotations

import contextlib

from chattn_cuda import _native, backends, functional, models, ops
from chattn_cuda._version import __version__
from chattn_cuda.convert import Report, accelerate, restore
from chattn_cuda.explanation import Explanation, ModelExplanation, explain
from chattn_cuda.modules import (
    CircularEfficientChannelAttention,
    EffectiveSqueezeExcite,
    EfficientChannelAttention,
    EfficientChannelAttentionNS,
    SelectiveKernel,
    SelectiveKernelAttn,
    SplitAttn,
    SqueezeExcite,
    SqueezeExciteCl,
)
from chattn_cuda.ops import decompositions

__all__ = [
    "CircularEfficientChannelAttention",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "EfficientChannelAttentionNS",
    "Explanation",
    "ModelExplanation",
    "Report",
    "SelectiveKernel",
    "SelectiveKernelAttn",
    "SplitAttn",
    "SqueezeExcite",
    "SqueezeExciteCl",
    "__version__",
    "accelerate",
    "backends",
    "decompositions",
    "explain",
    "functional",
    "models",
    "restore",
]

# An exported program calls the native operators without asking for a backend. A broken module is
# reported by whoever uses it, so that `doctor` can still start.
with contextlib.suppress(ImportError):
    if _native.module() is not None:
        ops.register_rules("chattn_cuda")
