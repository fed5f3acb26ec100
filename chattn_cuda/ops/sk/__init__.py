"""The selective kernel under autograd, torch.func and torch.compile.

The operator `sk_squeeze` reads the branches, `sk_select` reads them again and writes y. Both give
the branches a gradient, ``dpooled / HW`` and ``gate[m] * dy``, whose sum is written once. With the
usual `Network` between the two the block is one node of the graph (`block`), and on native backends
one operator. A network of another kind is called, and lies between two nodes (`carriers`). Under
torch.func, where a transform may add up gradients, each operator is differentiated by itself.
"""

from chattn_cuda.ops.sk.attend import attend, squeeze, takes_prologue
from chattn_cuda.ops.sk.fakes import FAKES
from chattn_cuda.ops.sk.gradients import gradients
from chattn_cuda.ops.sk.grouped import to_branches
from chattn_cuda.ops.sk.network import HiddenNorm, Network
from chattn_cuda.ops.sk.prologue import Norm, Prologue

__all__ = [
    "FAKES",
    "HiddenNorm",
    "Network",
    "Norm",
    "Prologue",
    "attend",
    "gradients",
    "squeeze",
    "takes_prologue",
    "to_branches",
]
