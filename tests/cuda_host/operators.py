"""The operators `torch.ops.chattn_cuda_host.*`: the CUDA kernels, executed on CPU tensors."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.cuda_host import build
from tests.cuda_host.control import HostCuda

CSRC = build.ROOT / "csrc"
#: everything that nvcc, or g++ for the GPU's sake, compiles in a build with CUDA
SOURCES = (*sorted(CSRC.rglob("*.cu")), *sorted(CSRC.rglob("*_cuda.cpp")))


def library(variant: str = "plain", csrc: Path = CSRC) -> Path:
    """Build the operators' library; arguments as in build.build_library."""
    kernels = [csrc / source.relative_to(CSRC) for source in SOURCES]
    return build.build_library(
        "chattn_cuda_host",
        [*kernels, *sorted((build.HERE / "ops").glob("*.cpp"))],
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
