"""The case table, and what tests need beside it."""

from tests.cases.block import Block, Config, Variant
from tests.cases.layouts import LAYOUTS
from tests.cases.table import (
    BLOCKS,
    DTYPES,
    HAS_GPU,
    Case,
    Inputs,
    device_of,
    fused_backends,
    is_slow,
    make_inputs,
    require,
    table,
    unavailable,
)

__all__ = [
    "BLOCKS",
    "DTYPES",
    "HAS_GPU",
    "LAYOUTS",
    "Block",
    "Case",
    "Config",
    "Inputs",
    "Variant",
    "device_of",
    "fused_backends",
    "is_slow",
    "make_inputs",
    "require",
    "table",
    "unavailable",
]
