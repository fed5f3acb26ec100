"""What this machine is: the conditions that every measured number is printed with."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from chattn_cuda import _native
from chattn_cuda._version import __version__

__all__ = ["Environment", "architecture_runs", "command_version", "cpu_model", "environment"]


@dataclass(frozen=True)
class Environment:
    """The conditions of a measurement.

    Attributes:
        device: The GPU's name, or the CPU's.
        isa: The instruction set of the CPU kernels, or the GPU's compute capability.
        threads: CPU threads that torch uses.
        cores: CPU cores that the process may use.
        torch: torch's version.
        python: Python's version.
        chattn_cuda: This package's version.
        commit: Of the source tree, with "+" if it was changed; empty outside a checkout.
        cuda: CUDA version of torch on a GPU, else empty.
        clocks: The GPU's clocks, else empty.
    """

    device: str
    isa: str
    threads: int
    cores: int
    torch: str
    python: str
    chattn_cuda: str
    commit: str
    cuda: str
    clocks: str

    def line(self) -> str:
        """One line of text."""
        parts = [f"{self.device} ({self.isa})"]
        parts.append(self.clocks if self.cuda else f"{self.threads} of {self.cores} cores")
        parts.append(f"torch {self.torch}")
        version = f"chattn_cuda {self.chattn_cuda}"
        parts.append(f"{version} ({self.commit})" if self.commit else version)
        return ", ".join(part for part in parts if part)

    def as_dict(self) -> dict[str, str | int]:
        """For JSON and CSV."""
        return asdict(self)


def environment(device_type: str) -> Environment:
    """The conditions on this machine, for measurements on ``device_type``."""
    on_gpu = device_type == "cuda"
    native = _native.module()
    if on_gpu:
        major, minor = torch.cuda.get_device_capability()
        isa = f"sm_{major}{minor}"
    else:
        isa = native.cpu_isa() if native else torch.backends.cpu.get_cpu_capability().lower()
    return Environment(
        device=torch.cuda.get_device_name() if on_gpu else cpu_model(),
        isa=isa,
        threads=torch.get_num_threads(),
        cores=available_cores(),
        torch=torch.__version__,
        python=platform.python_version(),
        chattn_cuda=__version__,
        commit=_commit(),
        cuda=(torch.version.cuda or "") if on_gpu else "",
        clocks=_gpu_clocks() if on_gpu else "",
    )


def cpu_model() -> str:
    """The CPU's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return re.sub(r"\((R|TM)\)|\bCPU\b", "", line.split(":", 1)[1]).strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command_version(command: str) -> str | None:
    """The version that ``command --version`` tells, or None where it does not run."""
    path = shutil.which(command)
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout)
    return found[0] if found and done.returncode == 0 else None


def architecture_runs(built: str, capability: tuple[int, int]) -> bool:
    """Whether kernels built for the list ``built`` run on a GPU of this compute capability.

    A binary runs on its own and later minor versions of one major version ("a" variants only on
    their own), PTX on everything later.
    """
    for entry in filter(None, built.replace(" ", ";").split(";")):
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if found is None:
            continue
        target = int(found[1]), int(found[2])
        if target == capability:
            return True
        if found[3] != "a" and target[0] == capability[0] and target[1] <= capability[1]:
            return True
        if found[4] and not found[3] and target <= capability:
            return True
    return False


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    return commit + "+" if commit and git("status", "--porcelain", "--untracked=no") else commit


def _gpu_clocks() -> str:
    query = ["--query-gpu=clocks.max.sm,clocks.max.mem", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            ["nvidia-smi", "-i", str(torch.cuda.current_device()), *query],
            capture_output=True,
            text=True,
            timeout=30,
        )
        sm, memory = done.stdout.strip().split(",")
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    return f"at most {sm.strip()} MHz, memory {memory.strip()} MHz"
