"""``python -m chattn_cuda doctor``: what is installed, built and usable here, or why not."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from chattn_cuda import _native, backends, functional, reference
from chattn_cuda._version import __version__
from chattn_cuda.cli.environment import (
    architecture_runs,
    available_cores,
    command_version,
    cpu_model,
)
from chattn_cuda.cli.measure import error_floor, errors
from chattn_cuda.cli.terminal import Cell, Table, Terminal

__all__ = ["add_arguments", "run"]

_REBUILD = "pip install --no-build-isolation -e ."
_OPTIONAL = ("timm", "torchvision", "scikit-learn", "pillow", "rich", "matplotlib")
_VARIABLES = {
    "CHATTN_BUILD_CUDA": "build: auto, 1 (an nvcc is required) or 0 (CPU kernels only)",
    "CUDA_HOME": "build: the CUDA toolkit; else the nvcc on PATH or from nvidia-cuda-nvcc",
    "TORCH_CUDA_ARCH_LIST": 'build: GPU architectures, such as "8.0;9.0+PTX"',
    "MAX_JOBS": "build: compilers at a time",
    "TRITON_INTERPRET": "run: 1 lets the triton backend take CPU tensors, slowly",
    "OMP_NUM_THREADS": "run: CPU threads",
}
_GOOD, _BAD, _OFF = "green", "bold red", "yellow"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``doctor`` has no options."""


def run(arguments: argparse.Namespace) -> int:
    """Print the report; returns 1 where something that was built is broken."""
    terminal = Terminal()
    try:
        native, loader_error = _native.module(), None
    except ImportError as error:
        native, loader_error = None, str(error)
    hints: list[str] = []

    terminal.heading("Versions")
    terminal.fields(_versions())

    terminal.heading("Native module")
    if loader_error is not None:
        terminal.fields([("chattn_cuda._C", Cell("built, but does not load", _BAD))])
        terminal.line(f"  {loader_error}", _BAD)
        hints.append(f"rebuild for this Python and torch: {_REBUILD}")
    elif native is None:
        terminal.fields([("chattn_cuda._C", Cell("not built", _BAD))])
        hints.append(f"build the kernels: {_REBUILD}")
    else:
        terminal.fields(_native_fields(native))

    terminal.heading("Devices")
    terminal.fields(_devices(native, hints))

    table = Table('Backends, in the order of backend="auto"', ["name", "here", "why"], left=3)
    broken = loader_error is not None
    for name in backends.names():
        state, text, failed = _backend(name, loader_error)
        broken = broken or failed
        table.rows.append([name, state, text])
    terminal.table(table)

    missing = [name for name in _OPTIONAL if _version(name) is None]
    if missing:
        hints.append(f"for the demo and the benchmark: pip install {' '.join(missing)}")
    if native is not None and torch.cuda.is_available() and not _native.build_info()["cuda"]:
        hints.append(
            "for the CUDA kernels, with an nvcc from CUDA_HOME, PATH or `pip install "
            f"nvidia-cuda-nvcc`: CHATTN_BUILD_CUDA=1 {_REBUILD}"
        )
    if hints:
        terminal.heading("To do")
        for hint in hints:
            terminal.line(f"  - {hint}")
    terminal.heading("Environment variables")
    width = max(map(len, _VARIABLES)) + 2
    for name, text in _VARIABLES.items():
        value = os.environ.get(name)
        text = text if value is None else f"{text}; now {value!r}"
        terminal.fields([(name, text)], width)
    return 1 if broken else 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[tuple[str, str | Cell]]:
    gxx, nvcc = command_version(os.environ.get("CXX", "g++")), command_version("nvcc")
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return [
        ("chattn_cuda", __version__),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__}, {cuda}"),
        ("triton", _version("triton") or Cell("not installed", _OFF)),
        ("C++ compiler", gxx or Cell("not found; torch.compile and rebuilding need one", _OFF)),
        ("nvcc on PATH", nvcc or "none"),
    ]


def _native_fields(native: ModuleType) -> list[tuple[str, str | Cell]]:
    info = _native.build_info()
    fields: list[tuple[str, str | Cell]] = [
        ("built with", f"torch {info['torch']}, C++ compiler {info['compiler']}"),
    ]
    sets = ", ".join(info.get("cpu_isas", "").split(";"))
    used = f"in use: {native.cpu_isa()}"
    fields.append(("CPU kernels", Cell(f"{sets}; {used}" if sets else used, _GOOD)))
    if info["cuda"]:
        archs = " ".join(info["cuda_archs"].split(";"))
        fields.append(("CUDA kernels", Cell(f"CUDA {info['cuda']} for {archs}", _GOOD)))
        fields.append(("", info["cuda_note"]))
    else:
        fields.append(("CUDA kernels", Cell(f"not built: {info['cuda_note']}", _OFF)))
    return fields


def _devices(native: ModuleType | None, hints: list[str]) -> list[tuple[str, str | Cell]]:
    threads = f"{torch.get_num_threads()} threads on {available_cores()} cores"
    fields: list[tuple[str, str | Cell]] = [("CPU", f"{cpu_model()}, {threads}")]
    if not torch.cuda.is_available():
        return [*fields, ("GPU", f"none: {_no_gpu()}")]
    archs = _native.build_info()["cuda_archs"] if native else ""
    for i in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(i)
        arch = f"{capability[0]}.{capability[1]}"
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        text = f"{torch.cuda.get_device_name(i)}, compute capability {arch}, {memory:.0f} GiB"
        if archs and not architecture_runs(archs, capability):
            fields.append(
                (f"GPU {i}", Cell(f"{text}; the CUDA kernels are not built for it", _BAD))
            )
            hints.append(f'build for GPU {i}: TORCH_CUDA_ARCH_LIST="{arch}" {_REBUILD}')
        else:
            fields.append((f"GPU {i}", text))
    return fields


def _no_gpu() -> str:
    if torch.version.cuda is None:
        return "this is a CPU build of torch"
    return "torch finds no GPU or no driver for it"


def _backend(name: str, loader_error: str | None) -> tuple[Cell, str, bool]:
    """(state, explanation, whether it is broken) of a backend."""

    def why_not(device: str) -> str | None:
        try:
            return backends.why_not(name, device)
        except ImportError:  # the native module, reported above
            return "the native module does not load"

    present = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    usable = [device for device in present if why_not(device) is None]
    if usable:
        try:
            error = max(_self_check(name, device) for device in usable)
        except Exception as failure:
            text = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            return Cell("broken", _BAD), text, True
        where = " and ".join("CUDA" if d == "cuda" else d.upper() for d in usable)
        if not error <= 4 * error_floor(torch.float32):
            return (
                Cell("broken", _BAD),
                f"wrong results on {where} tensors (error {error:.0e})",
                True,
            )
        return Cell("usable", _GOOD), f"on {where} tensors (self-check: error {error:.0e})", False
    listed = backends.get(name).auto_on
    home = listed[0] if listed else "cpu"
    reason = why_not(home)
    if reason is None:  # it would run on a GPU
        reason = _no_gpu()
    broken = loader_error is not None and backends.get(name).namespace == "chattn_cuda"
    return Cell("broken" if broken else "not usable", _BAD if broken else _OFF), reason, False


def _self_check(name: str, device: str) -> float:
    """Forward and backward on a small map: the largest error against the formulas in float64."""
    generator = torch.Generator().manual_seed(0)

    def tensors(convert: Callable[[torch.Tensor], Any]) -> list[Any]:
        generator.manual_seed(0)
        shapes = ((2, 20, 5, 7), (3, 20), (3,), (20, 3), (20,))
        made = (convert(torch.randn(s, generator=generator)) for s in shapes)
        return [t.requires_grad_() for t in made]

    fused = tensors(lambda t: t.to(device))
    exact = tensors(lambda t: t.double())
    y = functional.squeeze_excite(*fused, backend=name)
    y_exact, _ = reference.squeeze_excite(*exact)
    values = [y, *torch.autograd.grad(y.square().sum(), fused)]
    wanted = [y_exact, *torch.autograd.grad(y_exact.square().sum(), exact)]
    return max(errors(v.cpu(), w)[0] for v, w in zip(values, wanted, strict=True))
