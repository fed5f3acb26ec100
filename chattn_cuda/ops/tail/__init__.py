"""The tail around an attention block under autograd: batch norm, gate, residual, activation.

``y = act(factors * s * inner(v) + residual)`` with v the batch norm of x and s the gate of
``mean_hw(inner(v))``. Four operators read the maps: `tail_squeeze` gives the norm's scale and
shift and the mean, `tail_apply` writes y, `tail_reduce` sums what the gradients need over every
plane, and `tail_gradient` writes those of x and of the residual. Between them the gate is that of
any block, whose own operators get the mean as a map of one position. torch.compile gets all of it
as one operator (`graph`).
"""

from chattn_cuda.ops.tail.description import GATES, Gate, Norm, Tail
from chattn_cuda.ops.tail.fakes import FAKES
from chattn_cuda.ops.tail.function import apply_tail
from chattn_cuda.ops.tail.graph import WHOLE, define
from chattn_cuda.ops.tail.together import Together

__all__ = ["FAKES", "GATES", "WHOLE", "Gate", "Norm", "Tail", "Together", "apply_tail", "define"]
