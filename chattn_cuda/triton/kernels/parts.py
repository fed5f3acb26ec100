"""What gates read: partial results of the passes, (splits, N, C), and weights."""

# mypy: ignore-errors
# (Triton compiles these functions; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merge_sum(part, where, mask, splits, stride):
    """Sum over the splits, in order; four loads are in flight at a time."""
    total = tl.load(part + where, mask=mask, other=0.0)
    for first in range(1, splits, 4):
        for i in tl.static_range(4):
            here = part + (first + i) * stride + where
            total += tl.load(here, mask=mask & (first + i < splits), other=0.0)
    return total


@triton.jit
def load_weight(w, offs, mask, ACC: tl.constexpr):
    """Weights in the accumulation type."""
    return tl.load(w + offs, mask=mask, other=0.0).to(ACC)
