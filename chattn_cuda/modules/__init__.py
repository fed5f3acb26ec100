"""The blocks as modules, with their peers' constructors, parameter names and initialisation."""

from chattn_cuda.modules.ablations import SEGC, SEVar1, SEVar2, SEVar3
from chattn_cuda.modules.efficient_channel_attention import (
    CircularEfficientChannelAttention,
    EfficientChannelAttention,
    EfficientChannelAttentionNS,
    adaptive_kernel_size,
)
from chattn_cuda.modules.global_response_norm import GlobalResponseNorm
from chattn_cuda.modules.se_relatives import (
    EffectiveSqueezeExcite,
    GatherExcite,
    SpatialChannelSqueezeExcite,
    SqueezeExciteCl,
    SqueezeExciteScaleBias,
)
from chattn_cuda.modules.selective_kernel import SelectiveKernelAttn
from chattn_cuda.modules.selective_kernel_blocks import (
    SelectiveKernel,
    SelectiveKernelConv,
    SKConv,
    SKNet,
    SKUnit,
)
from chattn_cuda.modules.split_attention import SplitAttn
from chattn_cuda.modules.squeeze_excite import SqueezeExcite

__all__ = [
    "SEGC",
    "CircularEfficientChannelAttention",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "EfficientChannelAttentionNS",
    "GatherExcite",
    "GlobalResponseNorm",
    "SEVar1",
    "SEVar2",
    "SEVar3",
    "SKConv",
    "SKNet",
    "SKUnit",
    "SelectiveKernel",
    "SelectiveKernelAttn",
    "SelectiveKernelConv",
    "SpatialChannelSqueezeExcite",
    "SplitAttn",
    "SqueezeExcite",
    "SqueezeExciteCl",
    "SqueezeExciteScaleBias",
    "adaptive_kernel_size",
]
