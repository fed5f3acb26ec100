"""The loads that each streaming loop has in flight, counted in the extension's code for sm_90.

What a loop waits for is memory, so how much it has asked for before it waits decides how fast it is
(docs/gpu-model.md, Reductions and apply). The source does not show it: the compiler moves no load
in front of a test, takes vectors apart, or saves registers by using the first word before it asks
for the next.
"""

from __future__ import annotations

import re

import pytest

from tests import sass
from tests.cuda_host.blocks import KERNELS, inputs_of
from tests.cuda_resources import ToolError, extension
from tests.test_cuda_compile import WIDTHS, built

#: loads of 16 bytes before the first is used, at least, where a place has one input, two, or more
REQUIRED = {
    "apply_rows": (4, 4, 4),
    "apply_spans": (4, 4, 4),
    "reduce_rows": (4, 4, 2),
    "reduce_planes": (3, 2, 2),  # many blocks fit, and more loads of each gained nothing
    "reduce_tiles": (2, 2, 2),  # a thread has 2 words of 16-bit elements, 4 of float32
    "stage_planes": (4, 4, 4),
}
#: sums in float64, which is for checking gradients: the compiler adds each word as it comes
SERIAL = {
    "reduce_rows<double, 2, SumOp<double, 1>>",
    "reduce_rows<double, 2, SumOp<double, 2>>",
    "reduce_planes<double, 2, SumOp<double, 1>>",
    *(name for kernels in KERNELS.values() for name in kernels.serial),
}
TYPES = {
    "bfloat16": ("bfloat16_t", "INS_10bfloat16_tELi8E"),
    "float32": ("float", "IfLi4E"),
    "float16": ("half_t", "INS_6half_tELi8E"),
    "float64": ("double", "IdLi2E"),
}
#: a gate that only this block's source has
OF_BLOCK = {name: kernels.gate for name, kernels in KERNELS.items() if kernels.gate is not None}


def least_of(kernel: str) -> int | None:
    """The loads that a kernel must have in flight; None: it streams nothing in 16-byte words."""
    match = re.match(r"(\w+)<(\w+), (\d)", kernel)
    if not match or match[1] not in REQUIRED or WIDTHS[match[2]] != int(match[3]):
        return None
    inputs = inputs_of(kernel)
    assert inputs is not None, f"{kernel}: add what it reads to its block's case"
    return 1 if kernel in SERIAL else REQUIRED[match[1]][min(inputs, 3) - 1]


def too_few(kernel: str, loops: list[sass.Loop], least: int) -> str | None:
    """A line about a kernel whose loop over the map waits too early."""
    # Products of a gate lie in the same launch as an apply; what stores is the loop over the map.
    main = sass.main_loop(loops, 128, stores=kernel.startswith("apply"))
    if main is None:
        return f"{kernel}: no loop with loads of 16 bytes"
    loads = main.in_flight(128)
    return None if loads >= least else f"{kernel}: {loads} loads in flight, not {least}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "float32",
        # The machine code of 16-bit types differs in conversions.
        pytest.param("float16", marks=pytest.mark.sanitize),
        pytest.param("float64", marks=pytest.mark.sanitize),
    ],
)
@pytest.mark.parametrize("block", OF_BLOCK)
def test_streaming_loops_ask_for_much_before_they_wait(block: str, dtype: str) -> None:
    if 90 not in {arch for _, arch in built()}:
        pytest.skip("the extension has no kernels for sm_90")
    name, suffix = TYPES[dtype]
    gate = OF_BLOCK[block]
    symbol = rf"apply_rows{suffix}NS0_\d+{gate}"
    short, seen = [], set()
    try:
        for kernel, loops in sass.kernels(extension(), 90, symbol):
            if (least := least_of(kernel)) is None:
                continue
            assert kernel.split("<")[1].startswith(name), kernel
            seen.add(kernel.split("<")[0])
            if line := too_few(kernel, loops, least):
                short.append(line)
    except ToolError as error:
        pytest.skip(str(error))
    expected = {k for k in REQUIRED if k != "stage_planes" or block == "eca"}
    if block == "tail" and dtype == "float64":  # takes the kernel for any tail, element by element
        expected = set()
    assert seen == expected
    assert short == []


# `#pragma unroll 4` over a stride that only the launch knows, as nvcc compiled it at one time.
PRETENDING = """
        /*0000*/                   MOV R8, RZ ;
.L_x_0:
        /*0010*/                   LDG.E.128 R16, desc[UR6][R32.64] ;
        /*0020*/                   IADD3 R25, R25, R6, RZ ;
        /*0030*/                   FADD R8, R8, R16 ;
        /*0040*/                   ISETP.GE.AND P0, PT, R25, R4, PT ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
        /*0060*/                   LDG.E.128 R20, desc[UR6][R34.64] ;
        /*0070*/                   FADD R8, R8, R20 ;
        /*0080*/                   ISETP.GE.AND P0, PT, R25, R4, PT ;
        /*0090*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*00a0*/                   EXIT ;
"""


def test_a_loop_that_pretends_is_found() -> None:
    for kernel in (
        "reduce_rows<bfloat16_t, 8, DotOp<bfloat16_t, 4, true>>",
        "reduce_planes<float, 4, SumOp<float, 1>>",
        "stage_planes<bfloat16_t, 8>",
    ):
        least = least_of(kernel)
        assert least is not None and least > 1
        line = too_few(kernel, sass.loops(PRETENDING), least)
        assert line == f"{kernel}: 1 loads in flight, not {least}"
