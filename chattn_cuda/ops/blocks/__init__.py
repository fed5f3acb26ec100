"""The blocks that are a pair of operators: a description in each file here, found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from chattn_cuda.ops.block import Block

__all__ = ["BLOCKS"]

_names = sorted(module.name for module in pkgutil.iter_modules(__path__))

#: By the prefix of the operators.
BLOCKS: dict[str, Block] = {
    block.name: block
    for block in (importlib.import_module(f"{__name__}.{name}").BLOCK for name in _names)
}
