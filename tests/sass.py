"""Reads the machine code of kernels: their loops, and how many loads those have in flight.

    for kernel, loops in sass.kernels(Path("se_bf16.cubin"), 90):
        main = sass.main_loop(loops, 128)
        main.in_flight(128)     # loads of 128 bits issued before the first of them is used

A warp waits where it uses what a load has yet to bring, so the loads before the first use are those
that it has in flight. An unrolled loop that tests for its end between them has one: load, use,
branch, load.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.cuda_resources import demangle, run_tool

_LABEL = re.compile(r"(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_REGISTER = re.compile(r"(?<![A-Za-z0-9_])R(\d+)(\.64)?")
_MEMORY = ("LDG", "STG", "LDS", "STS", "LDL", "STL")
_ENDS = ("BAR", "CALL", "EXIT", "RET")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


@dataclass(frozen=True)
class Instruction:
    """One line, such as `@!P0 LDG.E.128 R16, desc[UR6][R32.64]`.

    Attributes:
        guard: The predicate it depends on, or "".
        opcode: With its modifiers.
        operands: The rest of the line.
    """

    guard: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """Without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def bits(self) -> int:
        """Width of a memory access."""
        found = re.search(r"\.[US]?(8|16|64|128|256)\b", self.opcode)
        return int(found[1]) if found else 32

    @cached_property
    def registers(self) -> frozenset[int]:
        """Those that it names, to read or to write."""
        found = set()
        for number, wide in _REGISTER.findall(self.operands):
            found |= {int(number), int(number) + 1} if wide else {int(number)}
        return frozenset(found)

    @property
    def target(self) -> str | None:
        """Where a branch goes."""
        found = _TARGET.search(self.operands) if self.name == "BRA" else None
        return found[1] if found else None

    @property
    def always(self) -> bool:
        """Whether it depends on no predicate and, as a branch, on no operand."""
        return not self.guard and (self.target is None or re.match("BRA `", str(self)) is not None)

    def __str__(self) -> str:
        return f"{'@' * bool(self.guard)}{self.guard} {self.opcode} {self.operands}".strip()

    def loaded(self) -> frozenset[int]:
        """The registers that a load from global memory fills."""
        first = _REGISTER.match(self.operands)
        assert first, f"no destination: {self}"
        return frozenset(int(first[1]) + i for i in range(max(1, self.bits // 32)))


@dataclass(frozen=True)
class Loop:
    """From a label to the last branch back to it.

    Attributes:
        body: Its instructions.
        labels: Where in it labels are.
    """

    body: tuple[Instruction, ...]
    labels: dict[str, int]

    def accesses(self, name: str) -> tuple[int, ...]:
        """Widths in bits of its LDG or STG instructions."""
        return tuple(i.bits for i in self.body if i.name == name)

    def in_flight(self, bits: int) -> int:
        """Loads of that width which are issued before one of their results is used.

        Counted from the first of them, once around the loop. A branch that depends on something is
        taken for not taken, so that loads behind one of their own count; one that does not is
        followed. Whatever names a loaded register uses it, and a barrier ends the count.
        """
        is_load = [x.name == "LDG" and x.bits == bits for x in self.body]
        if not any(is_load):
            return 0
        at, count = is_load.index(True), 0
        pending: frozenset[int] = frozenset()
        for _ in self.body:
            x = self.body[at]
            if pending & x.registers or (x.name in _ENDS and x.always):
                break
            if is_load[at]:
                count += 1
                pending |= x.loaded()
            at += 1
            if x.target is not None and x.always:
                if x.target not in self.labels:
                    break
                at = self.labels[x.target]
            at %= len(self.body)
        return count


def _instructions(lines: Sequence[str]) -> tuple[list[Instruction], dict[str, int]]:
    """(instructions, label -> number of the instruction behind it)."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in lines:
        if match := _LABEL.match(line):
            labels[match[1]] = len(found)
        elif match := _INSTRUCTION.match(line):
            found.append(Instruction(match[1] or "", match[2], match[3]))
    return found, labels


def loops(text: str) -> list[Loop]:
    """The loops of one kernel in nvdisasm's text, inner and outer ones."""
    instructions, labels = _instructions(text.splitlines())
    ends = {
        x.target: i
        for i, x in enumerate(instructions)
        if x.target is not None and labels.get(x.target, i + 1) <= i
    }
    found = []
    for label, end in ends.items():
        first = labels[label]
        inside = {k: v - first for k, v in labels.items() if first <= v <= end}
        found.append(Loop(tuple(instructions[first : end + 1]), inside))
    # A branch to itself fills up the end of a kernel.
    return [loop for loop in found if len(loop.body) > 1]


def _is_inside(inner: Loop, outer: Loop) -> bool:
    """Whether a loop is one of another's turns, not the same loop with another way back.

    The last load of a batch may lie behind a branch back, which a turn without it takes: the ways
    then begin at places that no access to memory separates.
    """
    if len(inner.body) >= len(outer.body) or not set(inner.labels) < set(outer.labels):
        return False
    ahead = outer.body[: min(outer.labels[label] for label in inner.labels)]
    return any(x.name in _MEMORY for x in ahead)


def main_loop(candidates: Sequence[Loop], bits: int, stores: bool = False) -> Loop | None:
    """The innermost loop with most loads of a width: not what it leaves over, nor what is around.

    Args:
        candidates: Of a kernel.
        bits: Width of the loads.
        stores: Whether it must also store words of that width.
    """
    having = [
        loop
        for loop in candidates
        if bits in loop.accesses("LDG") and (not stores or bits in loop.accesses("STG"))
    ]
    inner = [loop for loop in having if not any(_is_inside(o, loop) for o in having)]
    return max(inner, key=lambda loop: loop.accesses("LDG").count(bits), default=None)


def kernels(binary: Path, arch: int, symbol: str = "") -> Iterator[tuple[str, list[Loop]]]:
    """Every kernel's loops.

    Args:
        binary: A cubin, object file or shared object.
        arch: 90 for sm_90.
        symbol: Look only at cubins where this expression is found; disassembling takes seconds.

    Raises:
        ToolError: A tool is missing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if binary.suffix == ".cubin":
            cubins = [binary.resolve()]
        else:
            run_tool("cuobjdump", "-xelf", f"sm_{arch}", binary.resolve(), cwd=folder)
            cubins = sorted(folder.glob(f"*.sm_{arch}.cubin"))
        for cubin in cubins:
            if not re.search(symbol.encode(), cubin.read_bytes()):
                continue
            text = run_tool("nvdisasm", "-c", cubin)
            sections = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)[1:]
            names = demangle(sections[::2])
            for mangled, body in zip(sections[::2], sections[1::2], strict=True):
                yield names[mangled], loops(body)
