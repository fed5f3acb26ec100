"""Compiles CUDA sources with g++ against the host runtime, plain or under a sanitizer.

    library = build_library("chattn_cuda_host", [*kernels, *operators], torch=True)
    program = build_program("zoo", sources, variant="tsan")

Objects and results are kept in build/cuda_host/ and made again when a source, a header that it
includes, the flags or the compiler change. Processes that want the same file take turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple, TypeVar

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "cuda_host"
RUNTIME = tuple(sorted(HERE.glob("*.cpp")))
JOBS = os.cpu_count() or 2
#: the oldest libtorch that the operators work with, as in setup.py
TORCH_TARGET = "0x020b000000000000"
_T = TypeVar("_T")

COMMON = [
    "-std=c++20", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror",
    # Several builds of the same sources may live in one Python process.
    "-fno-gnu-unique",
]  # fmt: skip
ASAN = ["-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# variant -> (flags of kernels, flags of everything else, flags of the linker)
VARIANTS: dict[str, tuple[list[str], list[str], list[str]]] = {
    # A CUDA thread has a stack of 64 KiB here, and nothing checks its end but a canary.
    "plain": (["-O2", "-Wframe-larger-than=8192"], ["-O2"], []),
    # For sources that run once: mutants. Compiling takes all of their time.
    "quick": (["-Og", "-g1"], ["-O2"], []),
    "asan": (ASAN, ASAN, ASAN),
    # The switch of stacks that machines other than x86-64 use.
    "ucontext": (["-O2"], ["-O2", "-DHOSTCUDA_UCONTEXT=1"], []),
    # Only kernels are instrumented: the runtime tells ThreadSanitizer what their barriers order.
    "tsan": (
        ["-Og", "-g1", "-fsanitize=thread"],
        ["-O1", "-DHOSTCUDA_TSAN=1"],
        ["-fsanitize=thread"],
    ),
}


class Unit(NamedTuple):
    """A source, and what is defined while it is compiled: "NAME=VALUE"."""

    source: Path
    defines: tuple[str, ...] = ()


class BuildError(RuntimeError):
    """The compiler refused; the text holds the command and what it printed.

    A second request for the same build says so at once, in one line: every test asks for it.
    """


#: what failed in this process, and the first line of the compiler's that says why
_failed: dict[tuple[object, ...], str] = {}


def compiler() -> str | None:
    """The C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build_library(
    name: str,
    sources: Sequence[Path | Unit],
    *,
    variant: str = "plain",
    defines: Iterable[str] = (),
    csrc: Path = ROOT / "csrc",
    torch: bool = False,
) -> Path:
    """Compile sources and the runtime into a shared library, for ctypes or torch.ops.load_library.

    Args:
        name: of the library; the file is called lib<name>-<hash>.so.
        sources: `.cu` files are kernels, everything else is plain C++.
        variant: "plain", "quick" (to build), "asan" (with UndefinedBehaviorSanitizer), "tsan" or
            "ucontext".
        defines: "NAME=VALUE", for the sources that are no units.
        csrc: replaces csrc/, for sources of a changed copy.
        torch: whether sources called `op*.cpp` use libtorch's stable ABI. These are compiled
            once more for another torch, and so is the library: kernels take minutes.

    Raises:
        BuildError: a compilation failed.
    """
    return _build(name, _units(sources, defines), variant, csrc, torch, shared=True)


def build_program(
    name: str,
    sources: Sequence[Path | Unit],
    *,
    variant: str = "plain",
    defines: Iterable[str] = (),
    csrc: Path = ROOT / "csrc",
) -> Path:
    """Compile sources, one of which has a main(), and the runtime into a program."""
    return _build(name, _units(sources, defines), variant, csrc, False, shared=False)


def _units(sources: Sequence[Path | Unit], defines: Iterable[str]) -> list[Unit]:
    common = tuple(defines)
    return [s if isinstance(s, Unit) else Unit(s, common) for s in sources]


def sanitized(variant: str, command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(command, environment) that run a program, or a Python that loads a sanitized library."""
    env = dict(os.environ)
    preload: list[str] = []
    command = list(command)
    brings_its_own = BUILD in Path(command[0]).parents  # made by build_program
    if variant == "asan":
        preload = ["libasan.so", "libubsan.so", "libstdc++.so"]
        env["ASAN_OPTIONS"] = "detect_leaks=0:" + env.get("ASAN_OPTIONS", "")
        env["UBSAN_OPTIONS"] = "print_stacktrace=1:" + env.get("UBSAN_OPTIONS", "")
    if variant == "tsan":
        preload = ["libtsan.so", "libstdc++.so"]
        env["TSAN_OPTIONS"] = "report_signal_unsafe=0:" + env.get("TSAN_OPTIONS", "")
        if setarch := shutil.which("setarch"):  # its shadow collides with random addresses
            command = [setarch, platform.machine(), "-R", *command]
    if preload and not brings_its_own:
        env["LD_PRELOAD"] = " ".join(_library_path(p) for p in preload)
    return command, env


@functools.cache
def _library_path(name: str) -> str:
    return subprocess.run(
        [str(compiler()), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@functools.cache
def _compiler_version() -> str:
    cxx = compiler()
    if cxx is None:
        raise BuildError("no C++ compiler: neither CXX nor g++ was found")
    text = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout
    return cxx + "\n" + text


@functools.cache
def torch_flags() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(of the compiler, of the linker) for sources that use libtorch's stable ABI."""
    import torch
    from torch.utils import cpp_extension

    # System headers are not tracked one by one; the version stands for all of torch's.
    compile_flags = [f"-isystem{p}" for p in cpp_extension.include_paths()]
    compile_flags.append(f'-DCHATTN_HOST_BUILD_TORCH="{torch.__version__}"')
    compile_flags.append(f"-DTORCH_TARGET_VERSION={TORCH_TARGET}")
    link_flags = []
    for p in cpp_extension.library_paths():
        link_flags += [f"-L{p}", f"-Wl,-rpath,{p}"]
    return tuple(compile_flags), (*link_flags, "-ltorch_cpu", "-lc10")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """While a file is made: others that want it wait, and then find it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # Not under the sanitizer that this process itself may run under.
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _dependencies(depfile: Path) -> list[str]:
    """The prerequisites listed in a Makefile rule."""
    rule = depfile.read_text().replace("\\\n", " ")
    names = rule.split(": ", 1)[1].replace("\\ ", "\0").split()
    return [n.replace("\0", " ") for n in names]


def _compile(source: Path, flags: Sequence[str], folder: Path) -> tuple[Path, str]:
    """(object, digest of all that went into it)."""
    identity = _digest(str(source), *flags, _compiler_version())[:12]
    stem = folder / f"{source.parent.name}-{source.stem}-{identity}"
    with _lock(stem):
        return stem.with_suffix(".o"), _digest(identity, *_compile_at(stem, source, flags))


def _compile_at(stem: Path, source: Path, flags: Sequence[str]) -> Iterable[str]:
    """Make the object, unless it is there; the digests of the files that went into it."""
    obj, manifest = stem.with_suffix(".o"), stem.with_suffix(".json")
    if obj.exists() and manifest.exists():
        known: dict[str, str] = json.loads(manifest.read_text())
        if all(Path(p).exists() and _file_digest(Path(p)) == d for p, d in known.items()):
            obj.touch()
            return known.values()
    depfile = stem.with_suffix(".d")
    command = [str(compiler()), *flags, "-MMD", "-MF", str(depfile), "-x", "c++", "-c", str(source)]
    result = _run([*command, "-o", str(obj)])
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    inputs = {p: _file_digest(Path(p)) for p in map(_absolute, _dependencies(depfile))}
    manifest.write_text(json.dumps(inputs))
    return inputs.values()


@functools.cache
def includes(source: Path, *trees: Path) -> frozenset[Path]:
    """A file and all that it includes from some folders."""
    found, new = {source}, [source]
    while new:
        names = re.findall(r'^#include "(.+?)"', new.pop().read_text(), re.MULTILINE)
        named = (tree / name for tree in trees for name in names)
        more = {path for path in named if path.exists()} - found
        found |= more
        new += more
    return frozenset(found)


def _unless_changed(unit: Unit, csrc: Path) -> tuple[Path, Path]:
    """(source, csrc), or their originals: what does not differ from them is compiled once."""
    source, original, trees = unit.source.resolve(), ROOT / "csrc", (csrc, ROOT / "tests")
    headers = re.findall('"(.+?)"', " ".join(unit.defines))  # for #include NAME
    named = (tree / header for header in headers for tree in trees)
    start = (source, *(path for path in named if path.exists()))
    found = frozenset[Path]().union(*(includes(path, *trees) for path in start))
    ours = [p.relative_to(csrc) for p in found if csrc in p.parents]
    if any((csrc / p).read_bytes() != (original / p).read_bytes() for p in ours):
        return source, csrc
    return original / source.relative_to(csrc) if csrc in source.parents else source, original


def _in_parallel(function: Callable[[Unit], _T], items: Iterable[Unit]) -> list[_T]:
    """The results in order; the first error ends it, without those that have not begun."""
    with ThreadPoolExecutor(JOBS) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _absolute(name: str) -> str:
    return str((ROOT / name).resolve())


def _build(
    name: str,
    sources: Sequence[Unit],
    variant: str,
    csrc: Path,
    torch: bool,
    *,
    shared: bool,
) -> Path:
    what = (name, *sources, variant, str(csrc), shared)
    if what in _failed:
        raise BuildError(f"{name} ({variant}) did not build, as reported before: {_failed[what]}")
    try:
        return _build_now(name, sources, variant, csrc, torch, shared)
    except BuildError as error:
        first = re.search(r"^.*\berror: .*|^.*\bundefined reference.*", str(error), re.MULTILINE)
        _failed[what] = first[0] if first else str(error).splitlines()[-1]
        raise


def _build_now(
    name: str,
    sources: Sequence[Unit],
    variant: str,
    csrc: Path,
    torch: bool,
    shared: bool,
) -> Path:
    kernel_flags, other_flags, link_flags = VARIANTS[variant]
    base = [*COMMON, f"-I{ROOT / 'tests'}"]
    torch_compile, torch_link = torch_flags() if torch else ((), ())
    libraries = ["-pthread", *torch_link]

    def compile_one(unit: Unit) -> tuple[Path, str]:
        source = unit.source.resolve()
        if source in RUNTIME:
            return _compile(source, [*base, f"-I{ROOT / 'csrc'}", *other_flags], objects_folder)
        own = kernel_flags if source.suffix == ".cu" else other_flags
        own = [*own, *torch_compile] if source.match("op*.cpp") else own
        source, tree = _unless_changed(unit, csrc)
        own = [*own, *(f"-D{d}" for d in unit.defines)]
        return _compile(source, [*base, f"-I{tree}", *own], objects_folder)

    folder, objects_folder = BUILD / variant, BUILD / "objects"
    objects = _in_parallel(compile_one, [*sources, *map(Unit, RUNTIME)])
    digest = _digest(*(d for _, d in objects), *link_flags, *libraries)[:12]
    # A new name for new contents: another process may have loaded the old file, or be about to.
    target = folder / (f"lib{name}-{digest}.so" if shared else f"{name}-{digest}")
    mode = ["-shared", "-Wl,-Bsymbolic"] if shared else []
    command = [str(compiler()), *mode, *link_flags, *(str(o) for o, _ in objects), *libraries]
    with _lock(target):
        if target.exists():
            target.touch()
        else:
            _remove_old(*folder.glob(f"*{name}-*"), *objects_folder.glob("*.o"))
            partial = target.with_name(target.name + ".part")
            result = _run([*command, "-o", str(partial)])
            if result.returncode != 0:
                raise BuildError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
            partial.rename(target)
    return target


def _remove_old(*files: Path) -> None:
    """Only what nobody has asked for lately: others may be using the rest."""
    for file in files:
        if file.exists() and time.time() - file.stat().st_mtime > 24 * 3600:
            file.unlink(missing_ok=True)
