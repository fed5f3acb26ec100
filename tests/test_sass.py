"""The reader of machine code, on small texts: loops, and the loads that they have in flight."""

from __future__ import annotations

import textwrap

import pytest

from tests import sass


def loop_of(text: str) -> sass.Loop:
    """A text's only loop; its lines are numbered as nvdisasm does."""
    (loop,) = sass.loops(assembled(text))
    return loop


def assembled(text: str) -> str:
    lines = []
    for number, line in enumerate(textwrap.dedent(text).strip().splitlines()):
        is_label = line.startswith(".L")
        lines.append(line if is_label else f"        /*{16 * number:04x}*/   {line} ;")
    return "\n".join(lines)


# `#pragma unroll 4` over a count that only the launch knows: load, use, branch, load.
UNROLLED = """
    MOV R2, RZ
    .L_x_0:
    LDG.E.128 R16, desc[UR6][R32.64]
    FADD R8, R8, R16
    ISETP.GE.AND P0, PT, R25, R4, PT
    @P0 BRA `(.L_x_1)
    LDG.E.128 R20, desc[UR6][R34.64]
    FADD R8, R8, R20
    @P0 BRA `(.L_x_1)
    LDG.E.128 R16, desc[UR6][R36.64]
    FADD R8, R8, R16
    @P0 BRA `(.L_x_1)
    LDG.E.128 R16, desc[UR6][R38.64]
    FADD R8, R8, R16
    @!P0 BRA `(.L_x_0)
    .L_x_1:
    EXIT
"""

# The same four loads in front of the first use; the places behind the first have tests.
BATCHED = """
    .L_x_0:
    @!P0 LDG.E.128 R16, desc[UR6][R32.64]
    @!P1 LDG.E.128 R20, desc[UR6][R34.64]
    IADD3 R33, P4, R33, R6.reuse, RZ
    @!P2 LDG.E.128 R24, desc[UR6][R36.64]
    @!P3 LDG.E.128 R28, desc[UR6][R38.64]
    BSSY B1, `(.L_x_1)
    @P0 BRA `(.L_x_2)
    FADD R8, R8, R16
    .L_x_2:
    BSYNC B1
    .L_x_1:
    FADD R8, R8, R20
    FADD R8, R8, R24
    FADD R8, R8, R28
    @!P5 BRA `(.L_x_0)
    EXIT
"""


def test_unrolling_a_tested_loop_leaves_one_load_in_flight() -> None:
    loop = loop_of(UNROLLED)
    assert loop.accesses("LDG") == (128,) * 4
    assert loop.in_flight(128) == 1


def test_a_batch_has_all_its_loads_in_flight() -> None:
    assert loop_of(BATCHED).in_flight(128) == 4


@pytest.mark.parametrize(
    ("use", "loads"),
    [
        ("FADD R8, R8, R40", 4),  # of something else
        ("FADD R8, R8, R16.reuse", 2),
        ("FADD R8, -R19, R8", 2),  # the last of the four that a load fills
        ("STS.128 [R2+0x10], R20", 2),
        ("STG.E desc[UR6][R22.64], R8", 2),  # an address: R22 and R23
        ("@P0 FADD R8, R8, |R23|", 2),
        ("MOV R20, RZ", 2),  # overwritten while it comes
        ("LDG.E R16, desc[UR6][R2.64]", 2),
        ("IMAD.WIDE R2, R2, 0x4, R32", 4),
        ("UMOV UR16, UR20", 4),  # not a warp's registers
        ("BAR.SYNC.DEFER_BLOCKING 0x0", 2),
        ("EXIT", 2),
        ("@P0 EXIT", 4),
    ],
)
def test_what_uses_a_load(use: str, loads: int) -> None:
    """A line between the second load and the third."""
    lines = BATCHED.replace("    IADD3 R33, P4, R33, R6.reuse, RZ", f"    {use}")
    assert loop_of(lines).in_flight(128) == loads


def test_loads_of_another_width_do_not_count() -> None:
    text = BATCHED.replace("@!P2 LDG.E.128 R24", "@!P2 LDG.E.U16 R24")
    assert loop_of(text).accesses("LDG") == (128, 128, 16, 128)
    assert loop_of(text).in_flight(128) == 3
    assert loop_of(text).in_flight(64) == 0
    assert loop_of(BATCHED.replace(".128", ".64")).in_flight(64) == 4
    assert loop_of(BATCHED.replace("E.128", "E.EF.128.CONSTANT")).in_flight(128) == 4


def test_a_loop_that_uses_what_the_turn_before_loaded() -> None:
    """The count goes around the loop once, from the first load on."""
    loop = loop_of("""
        .L_x_0:
        FADD R8, R8, R16
        FADD R8, R8, R20
        LDG.E.128 R16, desc[UR6][R32.64]
        LDG.E.128 R20, desc[UR6][R34.64]
        @!P0 BRA `(.L_x_0)
    """)
    assert loop.in_flight(128) == 2


def test_alternatives_do_not_add_up() -> None:
    """Two loads, or two others: a jump to where both ways meet is followed."""
    loop = loop_of("""
        .L_x_0:
        @P0 BRA `(.L_x_1)
        LDG.E.128 R16, desc[UR6][R32.64]
        LDG.E.128 R20, desc[UR6][R34.64]
        BRA `(.L_x_2)
        .L_x_1:
        LDG.E.128 R24, desc[UR6][R32.64]
        LDG.E.128 R28, desc[UR6][R34.64]
        .L_x_2:
        FADD R8, R16, R20
        @!P0 BRA `(.L_x_0)
    """)
    assert loop.accesses("LDG") == (128,) * 4
    assert loop.in_flight(128) == 2


LOOPS = """
    .L_x_0:
    LDG.E.128 R4, desc[UR6][R32.64]
    .L_x_1:
    LDG.E.128 R16, desc[UR6][R32.64]
    LDG.E.128 R20, desc[UR6][R34.64]
    STG.E.128 desc[UR6][R2.64], R16
    @!P0 BRA `(.L_x_1)
    @!P1 BRA `(.L_x_0)
    .L_x_2:
    LDG.E.128 R16, desc[UR6][R32.64]
    STG.E.128 desc[UR6][R2.64], R16
    @!P0 BRA `(.L_x_2)
    .L_x_3:
    LDG.E.128 R16, desc[UR6][R32.64]
    LDG.E.128 R20, desc[UR6][R34.64]
    LDG.E.128 R24, desc[UR6][R34.64]
    FADD R8, R16, R20
    @!P0 BRA `(.L_x_3)
    EXIT
    .L_x_4:
    BRA `(.L_x_4)
"""


def test_main_loop() -> None:
    """The inner one, with most loads, and with stores if they are asked for; not the fill."""
    loops = sass.loops(assembled(LOOPS))
    assert len(loops) == 4
    reads, copies = sass.main_loop(loops, 128), sass.main_loop(loops, 128, stores=True)
    assert reads is not None and ".L_x_3" in reads.labels
    assert copies is not None and list(copies.labels) == [".L_x_1"]
    assert copies.in_flight(128) == 2
    assert sass.main_loop(loops, 64) is None


# The fourth load of a batch behind a way back that the last turn takes, if three were left for it.
ROTATED = """
    .L_x_0:
    BSSY B0, `(.L_x_2)
    .L_x_1:
    STG.E.128 desc[UR6][R2.64], R16
    STG.E.128 desc[UR6][R2.64+0x10], R20
    STG.E.128 desc[UR6][R2.64+0x20], R24
    @!P3 STG.E.128 desc[UR6][R2.64+0x30], R28
    @P4 EXIT
    LDG.E.128 R16, desc[UR6][R32.64]
    @!P1 LDG.E.128 R20, desc[UR6][R34.64]
    @!P2 LDG.E.128 R24, desc[UR6][R36.64]
    @P3 BRA `(.L_x_1)
    BSYNC B0
    .L_x_2:
    LDG.E.128 R28, desc[UR6][R38.64]
    BRA `(.L_x_0)
"""


def test_two_ways_back_are_one_loop() -> None:
    loops = sass.loops(assembled(ROTATED))
    assert sorted(loop.in_flight(128) for loop in loops) == [3, 4]
    main = sass.main_loop(loops, 128, stores=True)
    assert main is not None and main.in_flight(128) == 4


def test_an_unrolled_loop_in_another_keeps_its_count() -> None:
    """Nothing is read in front of it, so that both count as one."""
    text = UNROLLED.replace("    MOV R2, RZ", "    .L_x_4:\n    MOV R2, RZ")
    loops = sass.loops(assembled(text.replace("    EXIT", "    @P6 BRA `(.L_x_4)\n    EXIT")))
    main = sass.main_loop(loops, 128)
    assert len(loops) == 2 and main is not None
    assert main.in_flight(128) == 1
