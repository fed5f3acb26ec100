"""What nvcc made of the kernels: registers, spills, shared memory, occupancy, vector accesses.

    python -m tests.cuda_resources           compare the extension with tests/cuda_resources.csv
    python -m tests.cuda_resources --write   write that table anew, after a change of the kernels

Registers and spills are read from the cubins inside the extension; shared memory is what the
planner asks for, the most over all shapes. A build for all architectures is needed, as on a machine
without a GPU; elsewhere TORCH_CUDA_ARCH_LIST="7.5;8.0;9.0;10.0;12.0+PTX".
"""

from __future__ import annotations

import csv
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from chattn_cuda import _native
from tests.cuda_host import traffic
from tests.cuda_host.blocks import KERNELS
from tests.tables import settle

TABLE = Path(__file__).with_suffix(".csv")
ARCHS = (75, 80, 90, 100, 120)
SERVED = {80: (80, 86, 89)}  # by the code of an architecture, where others run it too
THREADS = 256  # of every block: kThreads in csrc/engine/cuda/plan.h
REGISTERS_GIVEN = 8  # to a thread, at a time
COLUMNS = ("kernel", "arch", "registers", "spill_bytes", "shared_bytes", "blocks_per_sm",
           "occupancy", "nvcc")  # fmt: skip


class ToolError(RuntimeError):
    """A tool is missing or cannot read the file."""


# ---- the occupancy calculator's rules -----------------------------------------------------------
@dataclass(frozen=True)
class Multiprocessor:
    """Limits of a multiprocessor (CUDA C++ Programming Guide, technical specifications)."""

    threads: int
    blocks: int
    shared: int  # bytes
    shared_unit: int = 128
    shared_reserved: int = 1024  # of every block, for the system
    registers: int = 65536
    register_unit: int = 256  # per warp
    warp_unit: int = 4  # registers are given to so many warps at a time


MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 * 1024, shared_unit=256, shared_reserved=0),
    80: Multiprocessor(2048, 32, 164 * 1024),
    86: Multiprocessor(1536, 16, 100 * 1024),
    89: Multiprocessor(1536, 24, 100 * 1024),
    90: Multiprocessor(2048, 32, 228 * 1024),
    100: Multiprocessor(2048, 32, 228 * 1024),
    120: Multiprocessor(1536, 24, 100 * 1024),
}


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def blocks_per_sm(arch: int, registers: int, shared: int, threads: int = THREADS) -> int:
    """Blocks that a multiprocessor holds at once."""
    sm = MULTIPROCESSORS[arch]
    warps = -(-threads // 32)
    register_warps = sm.registers // _round_up(32 * registers, sm.register_unit)
    by_registers = register_warps // sm.warp_unit * sm.warp_unit // warps
    block_shared = _round_up(shared + sm.shared_reserved, sm.shared_unit)
    by_shared = sm.shared // block_shared if block_shared else sm.blocks
    return min(sm.blocks, sm.threads // (32 * warps), by_registers, by_shared)


# ---- tools --------------------------------------------------------------------------------------
@functools.cache
def tool(name: str) -> str:
    """Path of cuobjdump or nvdisasm: from the triton package, the toolkit or PATH.

    Raises:
        ToolError: there is none.
    """
    folders = []
    if (spec := find_spec("triton")) and spec.origin:
        folders.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        folders.append(Path(home) / "bin")
    for folder in folders:
        if (folder / name).exists():
            return str(folder / name)
    if found := shutil.which(name):
        return found
    raise ToolError(f"no {name}: neither in the triton package nor in a CUDA toolkit")


def run_tool(name: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """What it printed.

    Raises:
        ToolError: it is missing, or failed.
    """
    done = subprocess.run(
        [tool(name), *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )
    if done.returncode != 0:
        raise ToolError(f"{name} failed: {done.stderr.strip()}")
    return done.stdout


def demangle(symbols: Iterable[str]) -> dict[str, str]:
    """Symbol -> name without namespaces and parameters, such as apply_rows<float, 4, ...>.

    Raises:
        ToolError: no c++filt.
    """
    symbols = list(dict.fromkeys(symbols))
    filt = shutil.which("c++filt")
    if filt is None:
        raise ToolError("no c++filt (binutils)")
    done = subprocess.run([filt], input="\n".join(symbols), capture_output=True, text=True)
    names = {}
    for symbol, text in zip(symbols, done.stdout.splitlines(), strict=True):
        text = re.sub(r"\b(chattn|cuda)::", "", text.removeprefix("void ").split("(")[0])
        names[symbol] = text.replace("> >", ">>").replace("> >", ">>")
    return names


# ---- cubins -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Usage:
    """What ptxas gave a kernel."""

    registers: int
    spill_bytes: int  # the stack frame and other local memory
    static_shared: int


def usage(binary: Path) -> dict[tuple[str, int], Usage]:
    """(kernel, arch) -> usage, of a shared object or object file.

    Raises:
        ToolError: a tool is missing.
    """
    found: dict[tuple[str, int], Usage] = {}
    arch, symbol = 0, ""
    for line in run_tool("cuobjdump", "-res-usage", binary).splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.match(r"\s*Function (\S+):", line):
            symbol = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            if arch >= 90:  # where ptxas counts what the system reserves
                shared -= MULTIPROCESSORS[arch].shared_reserved
            found[symbol, arch] = Usage(registers, stack + local, shared)
    names = demangle(symbol for symbol, _ in found)
    return {(names[symbol], arch): u for (symbol, arch), u in found.items()}


# ---- shared memory ------------------------------------------------------------------------------
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def planned_shared() -> dict[str, int]:
    """Kernel -> bytes of dynamic shared memory, from launches on the host execution layer."""
    most: dict[str, int] = defaultdict(int)
    calls = [(name, *largest) for name, kernels in KERNELS.items() for largest in kernels.largest]
    for block, shapes, options in calls:
        every = itertools.product(shapes, options, _DTYPES, traffic.LAYOUTS)
        for shape, option, dtype, layout in every:
            for call in traffic.measure(block, shape, dtype, layout, **option).values():
                for launch in call.report.launches:
                    most[launch.symbol] = max(most[launch.symbol], launch.shared_bytes)
    return {name: most[symbol] for symbol, name in demangle(most).items()}


# ---- the table ----------------------------------------------------------------------------------
Row = dict[str, str]


def read() -> dict[tuple[str, int], Row]:
    """The committed table."""
    with TABLE.open(newline="") as file:
        return {(row["kernel"], int(row["arch"])): row for row in csv.DictReader(file)}


def make(found: dict[tuple[str, int], Usage], shared: dict[str, int], nvcc: str) -> list[Row]:
    """The table of these kernels."""
    rows = []
    for (kernel, arch), u in sorted(found.items()):
        total = u.static_shared + shared[kernel]
        blocks = blocks_per_sm(arch, u.registers, total)
        occupancy = blocks * THREADS / MULTIPROCESSORS[arch].threads
        values = (kernel, arch, u.registers, u.spill_bytes, total, blocks, f"{occupancy:.3f}", nvcc)
        rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def differences(rows: Iterable[Row]) -> list[str]:
    """A line for each row that the committed table has otherwise.

    Registers count as they are given to threads, eight at a time: nvcc made 116 and 118 of one
    source, on one machine.
    """
    known = read()

    def given(row: Row) -> Row:
        return {**row, "registers": str(-(-int(row["registers"]) // REGISTERS_GIVEN))}

    lines = []
    for row in rows:
        before = known.get((row["kernel"], int(row["arch"])))
        if before is None:
            lines.append(f"{row['kernel']}, sm_{row['arch']}: not in the table")
        elif given(before) != given(row):
            changes = [f"{k} {before[k]} -> {row[k]}" for k in COLUMNS if before[k] != row[k]]
            lines.append(f"{row['kernel']}, sm_{row['arch']}: {', '.join(changes)}")
    return lines


def extension() -> Path:
    """The extension, built with CUDA.

    Raises:
        ToolError: it was built without, or not at all.
    """
    native = _native.module()
    if reason := _native.why_not_cuda():
        raise ToolError(reason)
    assert native is not None and native.__file__ is not None
    return Path(native.__file__)


def main() -> int:
    """Compare, or write the table; returns the exit code."""
    try:
        found = usage(extension())
        rows = make(found, planned_shared(), _native.build_info()["cuda"])
    except ToolError as error:
        print(error, file=sys.stderr)
        return 2
    if missing := set(ARCHS) - {arch for _, arch in found}:
        print(f"the extension has no kernels for {sorted(missing)}", file=sys.stderr)
        return 2
    changed = differences(rows) if TABLE.exists() else []
    return settle(TABLE, COLUMNS, rows, changed)


if __name__ == "__main__":
    sys.exit(main())
