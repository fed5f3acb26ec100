"""The fused tail: what the tests know of its kernels."""

from __future__ import annotations

from tests.cases.block import Block
from tests.cases.tail.cuda import KERNELS
from tests.cases.tail.triton import TRITON


def _not_yet(*_: object) -> object:
    raise NotImplementedError


BLOCK = Block(
    "tail",
    _not_yet,  # type: ignore[arg-type]
    _not_yet,  # type: ignore[arg-type]
    _not_yet,  # type: ignore[arg-type]
    shapes=(),
    small=(),
    options=(),
    operator="",
    kernels=(KERNELS,),
    triton=TRITON,
)
