"""The operators of the blocks under autograd, torch.func and torch.compile."""

from chattn_cuda.ops import sk
from chattn_cuda.ops.autograd import apply, apply_eagerly
from chattn_cuda.ops.block import Block, activation_of_code, in_format_of, memory_format_of
from chattn_cuda.ops.blocks import BLOCKS
from chattn_cuda.ops.decompositions import decompositions
from chattn_cuda.ops.registration import register_rules
from chattn_cuda.ops.sk import HiddenNorm, Network, Norm, Prologue

__all__ = [
    "BLOCKS",
    "Block",
    "HiddenNorm",
    "Network",
    "Norm",
    "Prologue",
    "activation_of_code",
    "apply",
    "apply_eagerly",
    "decompositions",
    "in_format_of",
    "memory_format_of",
    "register_rules",
    "sk",
]
