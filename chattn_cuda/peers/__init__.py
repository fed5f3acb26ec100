"""The classes of other libraries that the blocks stand for, one file per block.

What follows from a `Peer`: its adapter in `chattn_cuda.convert`, the models of it that
`chattn_cuda.parity` compares and, where it is `Measured`, the rows of the benchmarks. The libraries
are imported when their classes are needed.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil

from chattn_cuda.peers.peer import Measured, Peer, Shape

__all__ = ["PEERS", "Measured", "Peer", "Shape"]

_names = {module.name for module in pkgutil.iter_modules(__path__)} - {"peer"}

#: Of all files here; squeeze-and-excitation comes first wherever peers are listed.
PEERS: tuple[Peer, ...] = tuple(
    itertools.chain.from_iterable(
        importlib.import_module(f"{__name__}.{name}").PEERS
        for name in sorted(_names, key=lambda name: (name != "se", name))
    )
)
