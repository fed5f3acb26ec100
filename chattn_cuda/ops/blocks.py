"""The blocks that are a pair of operators, by the names of these."""

from __future__ import annotations

from chattn_cuda.ops import eca, se
from chattn_cuda.ops.block import Block

__all__ = ["BLOCKS"]

#: A new block adds its line here.
BLOCKS: dict[str, Block] = {block.name: block for block in (se.BLOCK, eca.BLOCK)}
