"""The classes of other libraries that the blocks stand for, one file per block.

What follows from a `Peer`: its adapter in `chattn_cuda.convert`, the models of it that
`chattn_cuda.parity` compares and, where it is `Measured`, the rows of the benchmarks. The libraries
are imported when their classes are needed.
"""

from __future__ import annotations

from chattn_cuda.peers import eca, se, sk
from chattn_cuda.peers.peer import Measured, Peer, Shape

__all__ = ["PEERS", "Measured", "Peer", "Shape"]

#: A new block adds its line here.
PEERS: tuple[Peer, ...] = (
    *se.PEERS,
    *eca.PEERS,
    *sk.PEERS,
)
