"""The CUDA kernels, executed on the CPU, as one more backend: the case table runs them too."""

from __future__ import annotations

import functools
import os

from chattn_cuda import backends, ops
from tests.cuda_host import build, operators

NAME = "cuda_host"
NAMESPACE = "chattn_cuda_host"


def register() -> None:
    """Add the backend. It can run once `load` was called."""
    backends.register(backends.Backend(NAME, NAMESPACE, (), _why_not))


@functools.cache
def load() -> str | None:
    """Build and load the kernels, once; returns why that is impossible here, or None.

    CHATTN_HOST_VARIANT=asan chooses a sanitizer, in a process that build.sanitized() starts.
    """
    if build.compiler() is None:
        return "no C++ compiler"
    operators.load(os.environ.get("CHATTN_HOST_VARIANT", "plain"))
    ops.register_rules(NAMESPACE)
    return None


def _why_not(device_type: str) -> str | None:
    if device_type != "cpu":
        return f"it takes CPU tensors, and x is on {device_type!r}"
    return None if load.cache_info().currsize else "tests.host_backend.load was not called"
