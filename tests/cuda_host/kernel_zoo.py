"""The zoo of small kernels: what its comments promise, and how to run it."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

from tests.cuda_host import build
from tests.cuda_host.control import HostCuda

FOLDER = build.HERE / "zoo"
SOURCES = (*sorted(FOLDER.glob("*.cu")), FOLDER / "zoo.cpp")
RIGHT, ERROR, WRONG = range(3)


@dataclass(frozen=True)
class Fault:
    """What a comment says of a broken kernel."""

    kind: str  # FAULT, RACE, ASAN, TSAN
    kernel: str
    where: str  # file:line
    text: str


def faults(kind: str) -> list[Fault]:
    """All comments of a kind; the line they speak of is the next one."""
    found = []
    for path in FOLDER.glob("*.cu"):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if comment := re.search(rf"// {kind} (\w+): (.*)", line):
                where = f"{path.name}:{number + 1}"
                found.append(Fault(kind, comment[1], where, comment[2].strip()))
    return found


def correct_kernels() -> list[str]:
    """Names of the kernels without a fault."""
    return re.findall(r"ZOO\(\s*(\w+),", (FOLDER / "correct.cu").read_text())


def program(variant: str) -> Path:
    """The zoo as a program."""
    return build.build_program("zoo", SOURCES, variant=variant, defines=["CHATTN_ZOO_MAIN"])


class Zoo(HostCuda):
    """The zoo in this process."""

    def __init__(self) -> None:
        super().__init__(build.build_library("zoo", SOURCES))

    def run(self, kernel: str) -> tuple[int, str]:
        """(RIGHT, ERROR or WRONG, text)."""
        text = ctypes.create_string_buffer(2048)
        outcome = self.library.zoo_run(kernel.encode(), text, ctypes.c_size_t(len(text)))
        return outcome, text.value.decode()

    def device(self) -> tuple[int, int, int]:
        """device_info(): sm, multiprocessors, shared memory per block."""
        info = (ctypes.c_int * 3)()
        self.library.zoo_device(info)
        return info[0], info[1], info[2]
