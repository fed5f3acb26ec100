"""A block of the case table brings all that the tests want to know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from chattn_cuda.ops.blocks import BLOCKS as DESCRIBED
from tests.cases import BLOCKS, Block
from tests.cuda_host import build
from tests.cuda_host.kernels import Kernels

#: of every block, and of one with operators under its own name
OF_ALL = ("small", "options")
OF_OPERATORS = (
    "shapes", "function", "not_finite", "threads", "by_hand", "kernels", "triton",
)  # fmt: skip
#: of those that `ops.blocks` describes; the operators of others are called by tests of their own
OF_DESCRIBED = ("variants", "constants")
OF_KERNELS = ("problems", "ordered", "bugs", "largest")
OF_TRITON = ("writes_map", "small", "ways")
#: without anything in them these say something
MAY_BE_EMPTY = ("threads",)


def missing(block: Block) -> Iterator[str]:
    """What a case file leaves out."""

    def empty(of: Any, names: tuple[str, ...], where: str) -> Iterator[str]:
        for name in names:
            value = getattr(of, name)
            if value is None or (not value and name not in MAY_BE_EMPTY):
                yield f"{where} has no {name}"

    where = f"tests/cases/{block.name}"
    yield from empty(block, OF_ALL, where)
    if block.operator is not None:
        return
    yield from empty(block, OF_OPERATORS, where)
    if block.name in DESCRIBED:
        yield from empty(block, OF_DESCRIBED, where)
    for kernels in block.kernels:
        yield from empty(kernels, OF_KERNELS, f"{where}, {kernels.name},")
        yield from of_kernels(kernels, f"{where}, {kernels.name},")
    if block.triton is not None:
        yield from empty(block.triton, OF_TRITON, f"{where}, triton,")


def of_kernels(kernels: Kernels, where: str) -> Iterator[str]:
    for file in kernels.sources:
        if not (build.ROOT / "csrc" / file).is_file():
            yield f"{where} has no file {file}"
    names = {problem.name for problem in kernels.problems}
    for name in {*kernels.ordered, *kernels.many_blocks} - names:
        yield f"{where} has no problem {name}"
    for problem in kernels.problems:
        if problem.block != kernels.name:
            yield f"{where} has a problem of {problem.block}"


@pytest.mark.parametrize("name", BLOCKS)
def test_nothing_is_missing(name: str) -> None:
    assert list(missing(BLOCKS[name])) == []


@pytest.mark.parametrize("part", OF_ALL + OF_OPERATORS + OF_DESCRIBED)
def test_a_part_that_is_missing_is_named(part: str) -> None:
    nothing = None if part in ("function", "threads", "triton") else ()
    block = dataclasses.replace(BLOCKS["eca"], **{part: nothing})
    assert list(missing(block)) == [f"tests/cases/eca has no {part}"]


@pytest.mark.parametrize("part", OF_KERNELS + OF_TRITON)
def test_a_part_of_kernels_that_is_missing_is_named(part: str) -> None:
    (kernels,), triton = BLOCKS["eca"].kernels, BLOCKS["eca"].triton
    assert triton is not None
    if part in OF_KERNELS:
        changed: dict[str, Any] = {"kernels": (dataclasses.replace(kernels, **{part: ()}),)}
    else:
        changed = {"triton": dataclasses.replace(triton, **{part: ()})}
    found = list(missing(dataclasses.replace(BLOCKS["eca"], **changed)))
    assert any(line.endswith(f"has no {part}") for line in found)


def test_kernels_and_problems_fit_together() -> None:
    (kernels,) = BLOCKS["eca"].kernels
    other = dataclasses.replace(
        kernels, name="other", sources=("none.cu",), ordered=("nowhere",), many_blocks=()
    )
    found = list(of_kernels(other, "other"))
    assert found[:2] == ["other has no file none.cu", "other has no problem nowhere"]
    assert found[2:] == ["other has a problem of eca"] * len(kernels.problems)


def test_every_block_has_a_case_file() -> None:
    """And all of its CUDA sources are under the checks of the host execution layer."""
    with_kernels = {name for name, block in BLOCKS.items() if block.kernels}
    folders = {path.name for path in (build.ROOT / "csrc" / "blocks").iterdir() if path.is_dir()}
    assert with_kernels == folders and set(DESCRIBED) <= with_kernels
    sources = {file for name in folders for k in BLOCKS[name].kernels for file in k.sources}
    found = (build.ROOT / "csrc" / "blocks").rglob("*.cu")
    assert sources == {str(path.relative_to(build.ROOT / "csrc")) for path in found}
