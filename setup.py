"""Builds chattn_cuda._C: CPU kernels always, CUDA kernels where an nvcc is found.

Steered by environment variables:
  CHATTN_BUILD_CUDA=auto|1|0  with CUDA if an nvcc is found (default), always, never
  CUDA_HOME                   toolkit (else nvcc on PATH, else the PyPI package nvidia-cuda-nvcc)
  TORCH_CUDA_ARCH_LIST        e.g. "8.0;9.0+PTX" (default: the GPUs found here, else a broad list)
  MAX_JOBS                    parallel compiler processes (default: all cores)
  CXX, CXXFLAGS               C++ compiler (default: g++), and options to add to ours
What is missing or wrong is said in one line that begins with "chattn_cuda:".

Sources are compiled directly instead of through torch's BuildExtension: the CPU kernels once per
instruction set, the CUDA kernels once per type of maps and without a torch header; a CPU build of
torch suffices.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "chattn_cuda/_version.py").read_text())[1]
# 8.6 and 8.9 run the code of 8.0: theirs made the binary a fifth larger, and bandwidth counts.
DEFAULT_ARCHS = "7.5;8.0;9.0;10.0;12.0+PTX"
# The oldest libtorch that the stable-ABI calls must work with.
OLDEST_TORCH = (2, 11)
TORCH_TARGET = "0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH)
OLDEST_NVCC = (12, 0)  # of those that know C++20
# One binary for every Python from 3.10 on. Those without a global lock have no limited API.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
PYTHON_TARGET = "0x030a0000"
# Of maps; the CUDA kernels are compiled for one at a time.
MAP_TYPES = ("float", "half_t", "bfloat16_t", "double")

ISA_FLAGS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    avx2 = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx2"] = avx2
    ISA_FLAGS["avx512"] = [*avx2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]


def say(text: str) -> None:
    print(f"chattn_cuda: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    raise SystemExit(f"chattn_cuda: {text}")


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def import_torch() -> ModuleType:
    wanted = f"torch {dotted(OLDEST_TORCH)} or newer is needed for the build"
    try:
        import torch
    except ImportError as error:
        fail(f"{wanted}, and none can be imported here: {error}")
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < OLDEST_TORCH:
        fail(f"{wanted}; here is torch {torch.__version__}")
    return torch


def run(command: list[str | Path], **given: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, **given
    )


def toolkit_of(nvcc: Path) -> Path | None:
    """The toolkit folder that an nvcc (which may be a wrapper script) belongs to."""
    found = run([nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"])
    top = re.search(r"TOP=(\S+)", found.stdout + found.stderr)
    for folder in ([Path(top[1]).resolve()] if top else []) + [nvcc.resolve().parent.parent]:
        if (folder / "bin" / "nvcc").exists():
            return folder
    return None


def find_toolkit() -> tuple[Path | None, str]:
    """(toolkit folder, or None; where it was found, or why there is none)."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        if (Path(home) / "bin" / "nvcc").exists():
            return Path(home), "CUDA_HOME"
        return None, f"CUDA_HOME is {home}, which has no bin/nvcc"
    on_path = shutil.which("nvcc")
    if on_path and (folder := toolkit_of(Path(on_path))):
        return folder, "PATH"
    spec = importlib.util.find_spec("nvidia")
    for base in spec.submodule_search_locations if spec else []:
        for folder in sorted(Path(base).glob("cu*"), reverse=True):
            if (folder / "bin" / "nvcc").exists():
                return folder, "the package nvidia-cuda-nvcc"
    return None, "no nvcc in CUDA_HOME, on PATH or from the package nvidia-cuda-nvcc"


def cuda_architectures() -> list[str]:
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    if not listed.strip(";"):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        here = sorted({torch.cuda.get_device_capability(i) for i in range(count)})
        listed = ";".join(f"{major}.{minor}" for major, minor in here) or DEFAULT_ARCHS
    archs = [a for a in listed.split(";") if a]
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            fail(f"TORCH_CUDA_ARCH_LIST: '{arch}' is no architecture such as 9.0 or 9.0+PTX")
    return archs


def code_levels(archs: list[str]) -> list[tuple[str, list[str], bool]]:
    """(architecture of the PTX, those whose machine code is made from it, whether it is kept).

    To the sources there are three kinds of devices: before 8.0, 8.x, and from 9.0 on (clusters).
    The lowest of a kind serves all; its PTX, which takes most of the time, is made once. 12.x is a
    kind of its own: made from older PTX, its machine code spills registers.
    """
    levels: dict[str, list[str]] = {}
    for arch in archs:
        number = arch.removesuffix("+PTX")
        alone = number if number[-1] in "af" else ""  # features of one architecture
        kind = max(k for k in (7, 8, 9, 12) if k <= max(int(number.split(".")[0]), 7))
        levels.setdefault(alone or str(kind), []).append(arch)
    found = []
    for level in levels.values():
        numbers = [arch.removesuffix("+PTX") for arch in level]
        lowest = min(numbers, key=lambda n: [int(re.sub(r"\D", "", x)) for x in n.split(".")])
        found.append((lowest, numbers, any(arch.endswith("+PTX") for arch in level)))
    return found


def gencode(archs: list[str]) -> list[str]:
    flags = []
    for lowest, numbers, keep in code_levels(archs):
        code = [f"sm_{n}" for n in numbers] + [f"compute_{lowest}"] * keep
        code = ",".join(c.replace(".", "") for c in code)
        flags.append(f"-gencode=arch=compute_{lowest.replace('.', '')},code=[{code}]")
    return flags


def built_architectures(archs: list[str]) -> list[str]:
    """What is in the binary: +PTX where it was made."""
    kept = {lowest for lowest, _, keep in code_levels(archs) if keep}
    numbers = [arch.removesuffix("+PTX") for arch in archs]
    return [f"{n}+PTX" if n in kept else n for n in numbers]


def parallel_jobs() -> int:
    wish = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not wish.isdigit() or int(wish) < 1:
        fail(f"MAX_JOBS must be a positive number, not '{wish}'")
    return int(wish)


def cxx_compiler() -> str:
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        fail(f"no C++ compiler: '{name}' was not found (CXX chooses another)")
    source = "#include <concepts>\n#if __cplusplus < 202002L\n#error older than C++20\n#endif\n"
    command = [name, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    done = run(command, input=source)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        wanted = "compile C++20, as g++ does from 11 on (CXX chooses another)"
        fail(f"'{name}' does not {wanted}: {said}")
    return name


class Cuda:
    """What CUDA compilation needs, or why there is none."""

    def __init__(self) -> None:
        wish = os.environ.get("CHATTN_BUILD_CUDA", "auto").lower()
        if wish not in ("auto", "0", "1"):
            fail(f"CHATTN_BUILD_CUDA must be auto, 0 or 1, not '{wish}'")
        self.home, self.note = (None, "CHATTN_BUILD_CUDA=0") if wish == "0" else find_toolkit()
        self.archs: list[str] = []
        self.version = ""
        if self.home and (problem := self.problem()):
            self.home, self.note = None, problem
        if not self.home and wish == "1":
            fail(f"CHATTN_BUILD_CUDA=1, but {self.note}")
        if self.home:
            self.archs = cuda_architectures()
            self.note = f"nvcc {self.version} from {self.note}"

    def problem(self) -> str | None:
        release = re.search(r"release (\d+\.\d+)", run([self.nvcc, "--version"]).stdout)
        if not release:
            return f"{self.nvcc} does not tell its release"
        self.version = release[1]
        if self.release < OLDEST_NVCC:
            return f"{self.nvcc} is release {self.version}, older than {dotted(OLDEST_NVCC)}"
        if not self.static_runtime():
            return f"{self.home} has no libcudart_static.a"
        return None

    @property
    def release(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))

    @property
    def nvcc(self) -> str:
        return str(self.home / "bin" / "nvcc")

    def static_runtime(self) -> Path | None:
        for sub in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            if (file := self.home / sub / "libcudart_static.a").exists():
                return file
        return None

    def command(self, defines: list[str]) -> list[str]:
        return [
            self.nvcc, "-O3", "-std=c++20", "-Xcompiler=-fPIC,-Wall,-fvisibility=hidden",
            f"-I{ROOT / 'csrc'}", *defines, *gencode(self.archs),
            *(["--compress-mode=size"] if self.release >= (12, 8) else []),
        ]  # fmt: skip


def up_to_date(output: Path) -> bool:
    """Whether an object is newer than everything that its Makefile rule (.d) lists."""
    rule = output.with_suffix(".d")
    if not output.exists() or not rule.exists():
        return False
    inputs = rule.read_text().replace("\\\n", " ").split(": ", 1)[1].split()
    made = output.stat().st_mtime
    return all(os.path.exists(f) and os.path.getmtime(f) < made for f in inputs)


class Build(build):
    """The native module first: what is missing is said before a hundred files are listed."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] != "build_ext")

    def run(self) -> None:
        # A wheel is made of all that lies there, of files that are gone from here, too.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Compiles csrc/ in parallel, reusing objects whose command and inputs have not changed."""

    def build_extension(self, ext: Extension) -> None:
        torch = import_torch()
        cxx = cxx_compiler()
        cuda = Cuda()
        from torch.utils import cpp_extension

        archs = built_architectures(cuda.archs)
        folder = Path(self.build_temp)
        if self.editable_mode:  # pip names one that it throws away; this is where wheels are made
            folder = ROOT / f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"
        self.objects = folder.resolve() / "csrc"
        base = [cxx, "-O2", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
                f"-I{ROOT / 'csrc'}", *shlex.split(os.environ.get("CXXFLAGS", ""))]  # fmt: skip
        x86 = ["-DCHATTN_HAVE_X86"] if "avx2" in ISA_FLAGS else []
        with_cuda = ["-DCHATTN_WITH_CUDA"] if cuda.home else []
        torch_flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"] + [
            f"-isystem{p}" for p in cpp_extension.include_paths()
        ]
        info = {
            "VERSION": VERSION, "TORCH_VERSION": torch.__version__, "CUDA_VERSION": cuda.version,
            "CPU_ISAS": ";".join(ISA_FLAGS),
            "CUDA_ARCHS": ";".join(archs), "CUDA_NOTE": cuda.note,
        }  # fmt: skip
        python = self.compiler.include_dirs + self.include_dirs
        module_flags = [f'-DCHATTN_{k}="{v}"' for k, v in info.items()]
        module_flags += [f"-DPy_LIMITED_API={PYTHON_TARGET}"] if ABI3 else []
        module_flags += [f"-isystem{p}" for p in python]

        jobs = []  # (source, object name, command)

        def add(source: Path, command: list[str], suffix: str = "") -> None:
            name = str(source.relative_to(ROOT / "csrc")).replace("/", "_") + suffix + ".o"
            jobs.append((source, self.objects / name, command))

        for source in sorted(ROOT.glob("csrc/**/*.cpp")):
            if source.name == "kernels.cpp":
                for isa, flags in ISA_FLAGS.items():
                    own = ["-Wno-psabi", "-ffp-contract=fast", f"-DCHATTN_ISA={isa}"]
                    add(source, [*base, *own, *flags], f".{isa}")
            elif source.name == "module.cpp":
                add(source, [*base, *with_cuda, *module_flags])
            elif source.match("op*.cpp"):
                add(source, [*base, *with_cuda, *torch_flags])
            else:
                add(source, [*base, *x86, *with_cuda])
        if cuda.home:
            for source in sorted(ROOT.glob("csrc/**/*.cu")):
                for t in MAP_TYPES:
                    add(source, cuda.command([*with_cuda, f"-DCHATTN_T={t}"]), f".{t}")

        say(f"CPU kernels for {', '.join(ISA_FLAGS)}")
        if cuda.home:
            say(f"CUDA kernels included: {cuda.note}, architectures {' '.join(archs)}")
        else:
            say(f"CUDA kernels not included: {cuda.note}")
        workers = parallel_jobs()
        jobs.sort(key=lambda job: job[0].suffix != ".cu")  # the slow ones first
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda job: self.compile(*job), jobs))

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        link = [cxx, "-shared", "-o", str(target), *(str(job[1]) for job in jobs)]
        link += [f"-L{p}" for p in cpp_extension.library_paths()] + ["-ltorch_cpu", "-lc10"]
        if cuda.home:
            link += [str(cuda.static_runtime()), "-lrt"]
        self.call([*link, "-ldl", "-lpthread", "-Wl,--as-needed"], f"linking {target.name}")

    def compile(self, source: Path, output: Path, command: list[str]) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        depends = ["-MMD", "-MF", str(output.with_suffix(".d"))]
        command = [*command, *depends, "-c", str(source), "-o", str(output)]
        record = output.with_suffix(".command")
        if record.exists() and record.read_text() == "\n".join(command) and up_to_date(output):
            return
        text = self.call(command, f"compiling {output.name.removesuffix('.o')}")
        output.with_suffix(".log").write_text(text)  # warnings, for tests/test_cuda_compile.py
        record.write_text("\n".join(command))

    def call(self, command: list[str], what: str) -> str:
        say(what)
        done = run(command)
        if done.stdout or done.stderr:
            say(done.stdout + done.stderr)
        if done.returncode and "No space left on device" in done.stdout + done.stderr:
            places = f"of {self.objects} or {tempfile.gettempdir()} (TMPDIR)"
            fail(f"{what} failed: the disk {places} is full")
        if done.returncode:
            fail(f"{what} failed; the command was:\n{' '.join(command)}")
        return done.stdout + done.stderr

    def copy_extensions_to_source(self) -> None:
        # Python prefers the name for one version, as older builds gave it.
        for old in ROOT.glob("chattn_cuda/_C.*.so"):
            old.unlink()
        super().copy_extensions_to_source()


if __name__ == "__main__":
    setup(
        version=VERSION,
        ext_modules=[Extension("chattn_cuda._C", sources=[], py_limited_api=ABI3)],
        cmdclass={"build": Build, "build_ext": BuildNative},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if ABI3 else {},
    )
