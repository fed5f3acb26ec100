"""What the functions of all blocks share: which calls the operators cover."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from chattn_cuda.activations import Activation

__all__ = ["Resolved", "why_not_fused"]

Resolved = tuple[Activation, float]
"""An activation of the kernels and its parameter."""


def why_not_fused(x: Tensor, weights: Sequence[Tensor | None]) -> str | None:
    """Why the operators cannot take these tensors, whatever the block; None where they can."""
    for t in (x, *weights):
        kind = type(t)
        if kind is not Tensor and kind is not torch.nn.Parameter and kind is not type(None):
            if hasattr(kind, "__tensor_flatten__"):
                return f"an argument is a {kind.__name__}"
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        return f"x has empty planes, shape {tuple(x.shape)}"
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            return "torch.func inside torch.compile cannot differentiate the operators"
    elif forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return None
