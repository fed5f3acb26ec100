"""The blocks as functions."""

from chattn_cuda.functional.common import Resolved, why_not_fused
from chattn_cuda.functional.eca import (
    efficient_channel_attention,
    run_efficient_channel_attention,
)
from chattn_cuda.functional.se import run_squeeze_excite, squeeze_excite

__all__ = [
    "Resolved",
    "efficient_channel_attention",
    "run_efficient_channel_attention",
    "run_squeeze_excite",
    "squeeze_excite",
    "why_not_fused",
]
