"""The blocks as functions."""

from chattn_cuda.functional import checked
from chattn_cuda.functional.common import (
    MAXIMUM,
    Resolved,
    exported_plainly,
    from_map,
    run,
    to_map,
    why_not_fused,
)
from chattn_cuda.functional.decision import Decision
from chattn_cuda.functional.eca import efficient_channel_attention
from chattn_cuda.functional.grn import global_response_norm
from chattn_cuda.functional.se import constants, squeeze_excite
from chattn_cuda.functional.se_relatives import (
    effective_squeeze_excite,
    squeeze_excite_scale_bias,
)
from chattn_cuda.functional.sk import (
    COPIES_OF_SLICES,
    run_selective_kernel,
    selective_kernel,
)

__all__ = [
    "COPIES_OF_SLICES",
    "MAXIMUM",
    "Decision",
    "Resolved",
    "checked",
    "constants",
    "effective_squeeze_excite",
    "efficient_channel_attention",
    "exported_plainly",
    "from_map",
    "global_response_norm",
    "run",
    "run_selective_kernel",
    "selective_kernel",
    "squeeze_excite",
    "squeeze_excite_scale_bias",
    "to_map",
    "why_not_fused",
]
