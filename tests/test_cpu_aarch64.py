"""The CPU kernels on aarch64: compiled by Debian's cross compiler, run by qemu's emulator.

    apt-get install g++-aarch64-linux-gnu qemu-user

Their vectors are GCC's own, which become NEON there; nothing is written for it.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda_host import build

ROOT = Path(__file__).resolve().parent.parent
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
# As setup.py compiles them, with one set of instructions.
FLAGS = ["-O2", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
KERNELS = ["-Wno-psabi", "-ffp-contract=fast", "-DCHATTN_ISA=baseline"]
EPS = {"f64": 2.0**-52, "f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}
Results = dict[tuple[str, ...], list[float]]  # by block, layout, type, call and array

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which(CROSS) is None,
        reason=f"no {CROSS}: apt-get install g++-aarch64-linux-gnu",
    ),
]


def compile_all(cxx: str, folder: Path) -> Path:
    """A program of all CPU kernels and tests/cpu_calls."""
    sources = sorted((*ROOT.glob("csrc/engine/cpu/*.cpp"), *ROOT.glob("csrc/blocks/*/cpu*.cpp")))
    assert len(sources) >= 7
    sources.append(ROOT / "tests/cpu_calls/calls.cpp")

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.parent.name}-{source.stem}.o"
        run(cxx, *FLAGS, *KERNELS, "-c", source, "-o", target)
        return target

    folder.mkdir()
    with ThreadPoolExecutor(build.JOBS) as pool:
        objects = list(pool.map(compile_one, sources))
    run(cxx, "-static", *objects, "-o", folder / "calls")
    return folder / "calls"


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def parsed(text: str) -> Results:
    isa, *lines = text.splitlines()
    assert isa == "baseline"
    return {
        tuple(words[:5]): [float(word) for word in words[5:]]
        for words in (line.split() for line in lines)
    }


def distance(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_the_results_are_those_of_x86(tmp_path: Path) -> None:
    """Exact is float64: the error may be twice that of this processor, plus a few roundings.

    How much float64 itself loses, float32 tells: as many roundings, each that much smaller.
    """
    for needed, package in ((QEMU, "qemu-user"), (build.compiler() or "g++", "g++")):
        if shutil.which(needed) is None:
            pytest.skip(f"no {needed}: apt-get install {package}")
    here = parsed(run(compile_all(str(build.compiler()), tmp_path / "here")))
    there = parsed(run(QEMU, compile_all(CROSS, tmp_path / "there")))
    assert here.keys() == there.keys()
    assert len({key[0] for key in here}) >= 20 and {key[2] for key in here} == set(EPS)
    far = []
    for key, ours in there.items():
        block, layout, type_, call, name = key
        exact = here[block, layout, "f64", call, name]
        known = "f32" if type_ == "f64" else type_
        roundings = distance(here[block, layout, known, call, name], exact) / EPS[known]
        bound = EPS[type_] * (2 * roundings + 4 * max(map(abs, exact)))
        if not distance(ours, exact) <= bound:
            far.append(f"{' '.join(key)}: {distance(ours, exact):.3g}, at most {bound:.3g}")
    assert not far, "\n".join(far)


def test_everything_else_compiles_for_it() -> None:
    """Operators, with torch's headers, and the module, with Python's."""
    if platform.machine() != "x86_64":
        pytest.skip("this is the processor that the headers of torch and Python are here for")
    flags, _ = build.torch_flags()
    python = [f"-isystem{sysconfig.get_path('include')}", "-DPy_LIMITED_API=0x030a0000"]
    told = ("VERSION", "TORCH_VERSION", "CPU_ISAS", "CUDA_VERSION", "CUDA_ARCHS", "CUDA_NOTE")
    module = [*python, *(f'-DCHATTN_{name}=""' for name in told)]
    sources = [ROOT / "csrc/module.cpp", *sorted(ROOT.glob("csrc/blocks/*/op*.cpp"))]
    assert len(sources) >= 6
    for source in sources:
        own = module if source.name == "module.cpp" else flags
        run(CROSS, *FLAGS, *own, "-fsyntax-only", source)
