"""What a build lacks is said in one line, by setup.py and through pip. Compilers are scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source checkout")

#: passes the check of the compiler, and then ends as a compiler does on a full disk
OUT_OF_SPACE = """
case "$*" in *-fsyntax-only*) exit 0 ;; esac
echo "{standard input}: Fatal error: can't write 40 bytes to section .text: No space left on device"
exit 1
"""
#: passes the check of the compiler, and compiles nothing
NOTHING_MORE = 'case "$*" in *-fsyntax-only*) exit 0 ;; esac; exit 1'
OLD_GXX = """
echo "g++: error: unrecognized command line option '-std=c++20'; did you mean '-std=c++2a'?" >&2
exit 1
"""
OLD_NVCC = 'echo "Cuda compilation tools, release 11.8, V11.8.89"'


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def fake_torch(folder: Path, text: str) -> str:
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").write_text(text)
    return str(folder)


def build(
    folder: Path, env: dict[str, str], *around: str, temporary: Path | None = None
) -> subprocess.CompletedProcess[str]:
    temporary = temporary or folder / "temporary"
    places = ["--build-temp", str(temporary), "--build-lib", str(folder / "lib")]
    return subprocess.run(
        [*around, sys.executable, "setup.py", "build_ext", *places],
        cwd=ROOT,
        env={**os.environ, "CHATTN_BUILD_CUDA": "0", **env},
        capture_output=True,
        text=True,
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The line that says why; there is no other."""
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    return done.stderr.splitlines()[-1].removeprefix("chattn_cuda: ")


Case = Callable[[Path], tuple[dict[str, str], str]]
CASES: dict[str, Case] = {
    "insists without nvcc": lambda _: (
        {"CHATTN_BUILD_CUDA": "1", "CUDA_HOME": "/nowhere"},
        "CHATTN_BUILD_CUDA=1, but CUDA_HOME is /nowhere, which has no bin/nvcc",
    ),
    "insists with an old nvcc": lambda tmp: (
        {
            "CHATTN_BUILD_CUDA": "1",
            "CUDA_HOME": str(Path(script(tmp / "bin/nvcc", OLD_NVCC)).parents[1]),
        },
        f"CHATTN_BUILD_CUDA=1, but {tmp}/bin/nvcc is release 11.8, older than 12.0",
    ),
    "unknown wish": lambda _: (
        {"CHATTN_BUILD_CUDA": "yes"},
        "CHATTN_BUILD_CUDA must be auto, 0 or 1, not 'yes'",
    ),
    "no jobs": lambda _: ({"MAX_JOBS": "0"}, "MAX_JOBS must be a positive number, not '0'"),
    "no compiler": lambda _: (
        {"CXX": "nosuch"},
        "no C++ compiler: 'nosuch' was not found (CXX chooses another)",
    ),
    "no compiler at all": lambda _: (
        {"CXX": "/bin/false"},
        "'/bin/false' does not compile C++20, as g++ does from 11 on (CXX chooses another): "
        "no message",
    ),
    "an old compiler": lambda tmp: (
        {"CXX": script(tmp / "g++", OLD_GXX)},
        f"'{tmp}/g++' does not compile C++20, as g++ does from 11 on (CXX chooses another): "
        "g++: error: unrecognized command line option '-std=c++20'; did you mean '-std=c++2a'?",
    ),
    "an old torch": lambda tmp: (
        {"PYTHONPATH": fake_torch(tmp, '__version__ = "2.10.0+cu130"')},
        "torch 2.11 or newer is needed for the build; here is torch 2.10.0+cu130",
    ),
    "no torch": lambda tmp: (
        {"PYTHONPATH": fake_torch(tmp, "raise ModuleNotFoundError('No module named torch')")},
        "torch 2.11 or newer is needed for the build, and none can be imported here: "
        "No module named torch",
    ),
    "a full disk": lambda tmp: (
        {"CXX": script(tmp / "g++", OUT_OF_SPACE), "TMPDIR": str(tmp), "MAX_JOBS": "1"},
        f"compiling blocks_eca_cpu.cpp failed: the disk of {tmp}/temporary/csrc or {tmp} (TMPDIR) "
        "is full",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_says_why(name: str, tmp_path: Path) -> None:
    env, message = CASES[name](tmp_path)
    assert said(build(tmp_path, env)) == message


def test_an_old_nvcc_leaves_the_cpu_kernels(tmp_path: Path) -> None:
    nvcc, cxx = script(tmp_path / "bin/nvcc", OLD_NVCC), script(tmp_path / "g++", NOTHING_MORE)
    env = {"CHATTN_BUILD_CUDA": "auto", "CUDA_HOME": str(tmp_path), "CXX": cxx, "MAX_JOBS": "1"}
    lines = build(tmp_path, env).stderr.splitlines()
    note = f"CUDA kernels not included: {nvcc} is release 11.8, older than 12.0"
    assert f"chattn_cuda: {note}" in lines


@pytest.mark.parametrize("full", ["objects", "temporary files"])
def test_a_disk_that_is_really_full(full: str, tmp_path: Path) -> None:
    cxx = shutil.which(os.environ.get("CXX", "g++"))
    if cxx is None:
        pytest.skip("no C++ compiler")
    small = tmp_path / "small"
    small.mkdir()
    mount = 'mount -t tmpfs -o size=64k none "$0" && exec "$@"'
    around = ["unshare", "--mount", "sh", "-c", mount, str(small)]
    if shutil.which("unshare") is None or subprocess.run([*around, "true"]).returncode:
        pytest.skip("no tmpfs can be mounted here: that takes root")
    temporary = small if full == "objects" else None
    env = {} if full == "objects" else {"TMPDIR": str(small)}
    reason = said(build(tmp_path, {**env, "MAX_JOBS": "1"}, *around, temporary=temporary))
    assert reason.endswith("is full") or "No space left on device" in reason, reason
    assert str(small) in reason


def test_pip_shows_the_line(tmp_path: Path) -> None:
    """Among the last of few: nothing is copied before."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"),
            *("--wheel-dir", tmp_path, ROOT),
        ],
        env={**os.environ, "CHATTN_BUILD_CUDA": "0", "CXX": "/bin/false"},
        capture_output=True,
        text=True,
    )
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert text.count("chattn_cuda: '/bin/false' does not compile C++20") == 1, text
    assert "Traceback" not in text and "copying" not in text, text
