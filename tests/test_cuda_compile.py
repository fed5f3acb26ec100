"""What nvcc made of the kernels, against the committed table; see cuda_resources.py."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chattn_cuda import _native
from tests import cuda_resources as resources
from tests import sass
from tests.cuda_host import build, operators
from tests.cuda_host.build import Unit
from tests.cuda_resources import ARCHS, SERVED, ToolError, blocks_per_sm

# Kernels that stream maps, and how many of their blocks a multiprocessor must hold at least, for
# enough loads in flight. sm_75 holds four such blocks at most.
STREAMING = ("reduce_tiles", "reduce_planes", "reduce_rows", "apply_spans", "apply_rows")
WIDTHS = {"float": 4, "half_t": 8, "bfloat16_t": 8, "double": 2}  # elements of 16 bytes


@functools.cache
def built() -> dict[tuple[str, int], resources.Usage]:
    try:
        return resources.usage(resources.extension())
    except ToolError as error:
        pytest.skip(str(error))


def kernel_name(kernel: str) -> str:
    return kernel.split("<")[0]


def is_widest(kernel: str) -> bool:
    """Whether the kernel streams maps in accesses of 16 bytes."""
    match = re.match(r"(\w+)<(\w+), (\d+)", kernel)
    return bool(match and match[1] in STREAMING and WIDTHS[match[2]] == int(match[3]))


# ---- the calculator -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "blocks"),
    [
        (75, 32, 0, 256, 4),  # threads
        (75, 65, 0, 256, 3),  # registers: 72 * 32 a warp
        (80, 32, 0, 256, 8),
        (80, 80, 0, 256, 3),
        (80, 255, 0, 256, 1),
        (80, 16, 0, 32, 32),  # blocks
        (86, 32, 33 * 1024, 128, 2),  # 2 * (33 + 1) KiB of 100
        (86, 40, 0, 256, 6),
        (89, 16, 0, 32, 24),
        (90, 32, 113 * 1024, 256, 2),
        (90, 32, 114 * 1024, 256, 1),  # the reserved KiB does not fit twice
        (100, 64, 0, 1024, 1),
        (120, 32, 0, 1024, 1),
        (120, 32, 0, 512, 3),
    ],
)
def test_occupancy(arch: int, registers: int, shared: int, threads: int, blocks: int) -> None:
    assert blocks_per_sm(arch, registers, shared, threads) == blocks


# ---- the table ----------------------------------------------------------------------------------
@pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
def test_table_has_every_kernel_with_its_shared_memory() -> None:
    try:
        planned = resources.planned_shared()
    except ToolError as error:
        pytest.skip(str(error))
    known = {(kernel, int(row["shared_bytes"])) for (kernel, _), row in resources.read().items()}
    assert known == set(planned.items()), "python -m tests.cuda_resources --write"
    assert {arch for _, arch in resources.read()} == set(ARCHS)


def test_table_has_no_spills() -> None:
    assert [key for key, row in resources.read().items() if row["spill_bytes"] != "0"] == []


def test_streaming_kernels_are_resident_twice() -> None:
    for (kernel, arch), row in resources.read().items():
        # float64 is for checking gradients, and asks for twice the shared memory.
        if kernel_name(kernel) in STREAMING and "double" not in kernel:
            needs = int(row["registers"]), int(row["shared_bytes"])
            for served in SERVED.get(arch, (arch,)):
                assert blocks_per_sm(served, *needs) >= 2, f"{kernel}, sm_{arch} on {served}"


def test_registers_differ_as_they_are_given() -> None:
    (key, row), *_ = resources.read().items()
    most = -(-int(row["registers"]) // 8) * 8
    assert resources.differences([{**row, "registers": str(most - 7)}]) == []
    assert resources.differences([row, {**row, "registers": str(most)}]) == []
    changed = resources.differences([{**row, "registers": str(most + 1)}])
    assert changed == [f"{key[0]}, sm_{key[1]}: registers {row['registers']} -> {most + 1}"]
    assert len(resources.differences([{**row, "spill_bytes": "8"}])) == 1


# ---- the extension ------------------------------------------------------------------------------
def test_extension_has_no_spills() -> None:
    assert [key for key, u in built().items() if u.spill_bytes > 0] == []


def test_extension_matches_table() -> None:
    nvcc = {row["nvcc"] for row in resources.read().values()}
    if _native.build_info().get("cuda", "") not in (*nvcc, ""):
        pytest.skip(f"built with nvcc {_native.build_info()['cuda']}, the table with {nvcc}")
    shared = {kernel: int(row["shared_bytes"]) for (kernel, _), row in resources.read().items()}
    new = {kernel for kernel, _ in built()} - set(shared)
    assert not new, "python -m tests.cuda_resources --write"
    rows = resources.make(built(), shared, nvcc.pop())
    assert resources.differences(rows) == [], "python -m tests.cuda_resources --write"


def check_streaming_loops(binary: Path, arch: int, symbol: str) -> int:
    """Whole 16-byte words go in and, in the apply kernels, out of the loop over the map.

    And a byte for a word, where a tail has a mask.

    Returns how many kernels have such a loop.
    """
    checked = 0
    for kernel, loops in sass.kernels(binary, arch, symbol):
        if not is_widest(kernel):
            continue
        checked += 1
        main = [loop for loop in loops if 128 in loop.accesses("LDG")]
        assert main, f"{kernel}, sm_{arch}: no loop with 128-bit loads"
        if kernel_name(kernel).startswith("apply"):  # the others are products of the gate
            main = [loop for loop in main if 128 in loop.accesses("STG")]
            assert main, f"{kernel}, sm_{arch}: narrow stores"
        if kernel_name(kernel) != "apply_spans":  # whose loop also has the ends of a span
            for loop in main:
                loads = loop.accesses("LDG")
                stores = loop.accesses("STG")
                narrow = {8} if "Tail" in kernel else set()
                assert set(loads) - narrow == {128}, f"{kernel}, sm_{arch}: loads of {loads}"
                assert set(stores) - narrow <= {128}, f"{kernel}, sm_{arch}: stores of {stores}"
    return checked


@pytest.mark.parametrize("symbol", ["bfloat16_t", "IfLi4"], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("arch", [75, 90, 120])
def test_streaming_loops_move_whole_words(arch: int, symbol: str) -> None:
    if arch not in {a for _, a in built()}:
        pytest.skip(f"the extension has no kernels for sm_{arch}")
    assert check_streaming_loops(resources.extension(), arch, symbol) > 0


def test_blocks_keep_to_the_launch_bounds() -> None:
    """A launch beyond them fails on a GPU only. That blocks are kThreads, other tests see."""
    sources = [p for p in (build.ROOT / "csrc").rglob("*.cu*") if p.parent.name != "common"]
    text = "\n".join(p.read_text() for p in sources)
    assert set(re.findall(r"CHATTN_KERNEL\((\w+)", text)) == {"kThreads"}
    assert set(re.findall(r"\.block = (.*?);", text)) == {"dim3(kThreads)"}


# ---- the compiler -------------------------------------------------------------------------------
def find_nvcc() -> str | None:
    home = Path(str(os.environ.get("CUDA_HOME", "/usr/local/cuda")))
    return str(home / "bin" / "nvcc") if (home / "bin" / "nvcc").exists() else shutil.which("nvcc")


def logs_of_build(units: list[Unit]) -> list[str] | None:
    """What nvcc printed when it made the extension; None unless that is of today's sources.

    The other tests of this file look at the extension itself.
    """
    if {arch for _, arch in built()} != set(ARCHS):
        return None
    logs = []
    for source, (define,) in units:
        name = str(source.relative_to(build.ROOT / "csrc")).replace("/", "_")
        name += "." + define.removeprefix("CHATTN_T=")
        objects = [
            o
            for o in build.ROOT.glob(f"build/temp*/csrc/{name}.o")
            if o.with_suffix(".log").exists()
        ]
        newest = max(objects, key=lambda o: o.stat().st_mtime, default=None)
        if newest is None:
            return None
        made = newest.stat().st_mtime
        inputs = newest.with_suffix(".d").read_text().replace("\\\n", " ").split(": ", 1)[1].split()
        if not all(Path(i).exists() and Path(i).stat().st_mtime < made for i in inputs):
            return None
        logs.append(newest.with_suffix(".log").read_text())
    return logs


@pytest.mark.sanitize
@pytest.mark.timeout(1500)
def test_compiles_without_warnings(tmp_path: Path) -> None:
    """All sources for all architectures; some minutes, unless the extension was built just so."""
    units = operators.kernels()
    if (logs := logs_of_build(units)) is not None:
        assert [text for text in logs if text] == []
        return
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc in CUDA_HOME, /usr/local/cuda or on PATH")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+\.\d+)", version)

    def compile_one(number: int) -> tuple[Path, str]:
        source, defines = units[number]
        output = tmp_path / f"{number}.o"
        command = [nvcc, "-O3", "-std=c++20", f"-I{build.ROOT / 'csrc'}", "-DCHATTN_WITH_CUDA"]
        command += ["-Werror", "all-warnings", "-Xcompiler=-fPIC,-Wall,-Werror"]
        command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
        command += [f"-D{d}" for d in defines]
        done = subprocess.run(
            [*command, "-c", str(source), "-o", str(output)], capture_output=True, text=True
        )
        return output, done.stdout + done.stderr if done.returncode else ""

    with ThreadPoolExecutor(build.JOBS) as pool:
        results = list(pool.map(compile_one, range(len(units))))
    assert [text for _, text in results if text] == []

    try:
        found = {key: u for output, _ in results for key, u in resources.usage(output).items()}
        assert {arch for _, arch in found} == set(ARCHS)
        assert [key for key, u in found.items() if u.spill_bytes > 0] == []
        table = resources.read()
        if release is not None and release[1] in {row["nvcc"] for row in table.values()}:
            shared = {kernel: int(row["shared_bytes"]) for (kernel, _), row in table.items()}
            assert resources.differences(resources.make(found, shared, release[1])) == []
        for arch in ARCHS:
            assert sum(check_streaming_loops(output, arch, "") for output, _ in results) > 0
    except ToolError as error:
        pytest.skip(f"compiled without warnings; not looked at any further: {error}")
