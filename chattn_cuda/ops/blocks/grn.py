"""Global response normalisation: what its operators take and return, and its formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chattn_cuda.ops.block import Block, Saved, Weight
from chattn_cuda.reference import accumulation_dtype, in_type, no_autocast

__all__ = ["BLOCK"]


def _norms(x: Tensor, *args: Any) -> tuple[Tensor]:
    u = in_type(x, accumulation_dtype(x.dtype))
    return (torch.linalg.vector_norm(u, dim=(2, 3)),)


def _formulas(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Woo et al., arXiv 2301.00808, equations 1 to 3."""
    acc = accumulation_dtype(x.dtype)
    with no_autocast(x.device.type):
        (g,) = _norms(x)
        s = g / (g.mean(1, keepdim=True) + eps)
        scale = 1 + in_type(weight, acc) * s
        shift = in_type(bias, acc)[None, :, None, None]
        y = in_type(in_type(x, acc) * scale[:, :, None, None] + shift, x.dtype)
    return y, s


BLOCK = Block(
    "grn",
    weights=(Weight("weight", "c"), Weight("bias", "c", is_bias=True)),
    constants=("float eps",),
    outputs=(Saved("norms", "n c"), Saved("gate", "n c")),
    formulas=_formulas,
    others=_norms,
)
