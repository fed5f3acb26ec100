"""The blocks as functions."""

from chattn_cuda.functional.common import Resolved, why_not_fused
from chattn_cuda.functional.eca import (
    efficient_channel_attention,
    run_efficient_channel_attention,
)
from chattn_cuda.functional.se import run_squeeze_excite, squeeze_excite
from chattn_cuda.functional.sk import run_selective_kernel, selective_kernel

__all__ = [
    "Resolved",
    "efficient_channel_attention",
    "run_efficient_channel_attention",
    "run_selective_kernel",
    "run_squeeze_excite",
    "selective_kernel",
    "squeeze_excite",
    "why_not_fused",
]
