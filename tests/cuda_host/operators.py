"""The operators `torch.ops.chattn_cuda_host.*`: the CUDA kernels, executed on CPU tensors."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.cuda_host import build
from tests.cuda_host.build import Unit
from tests.cuda_host.control import HostCuda

CSRC = build.ROOT / "csrc"
#: of maps, as setup.py compiles the kernels for them
TYPES = ("float", "half_t", "bfloat16_t", "double")


def kernels(csrc: Path = CSRC) -> list[Unit]:
    """All that nvcc compiles in a build with CUDA."""
    return [
        Unit(source, (f"CHATTN_T={t}",)) for source in sorted(csrc.rglob("*.cu")) for t in TYPES
    ]


def library(variant: str = "plain", csrc: Path = CSRC) -> Path:
    """Build the operators' library; arguments as in build.build_library."""
    runner = ('CHATTN_RUNNER="cuda_host/host_runner.h"',)
    operators = [Unit(source, runner) for source in sorted(csrc.rglob("op*.cpp"))]
    return build.build_library(
        "chattn_cuda_host",
        [*kernels(csrc), *operators],
        variant=variant,
        csrc=csrc,
        torch=True,
    )


@functools.cache
def load(variant: str = "plain") -> HostCuda:
    """Build and register the operators, once per process, and return what steers them."""
    import torch

    path = library(variant)
    torch.ops.load_library(str(path))
    return HostCuda(path)
