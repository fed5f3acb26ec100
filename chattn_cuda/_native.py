"""Loads the native module, which registers the operators ``torch.ops.chattn_cuda``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType


@functools.cache
def module() -> ModuleType | None:
    """``chattn_cuda._C``, or None where it was not built.

    Raises:
        ImportError: the module is there but does not load; the loader's own message follows.
    """
    if importlib.util.find_spec("chattn_cuda._C") is None:
        return None
    import torch  # noqa: F401  (its libraries must be in the process first)

    try:
        return importlib.import_module("chattn_cuda._C")
    except ImportError as error:
        raise ImportError(
            f"chattn_cuda._C was built but does not load: {error}. "
            "Rebuild it with: pip install --no-build-isolation --force-reinstall --no-deps ."
        ) from error


def build_info() -> dict[str, str]:
    """What the native module was built from; empty where it was not built."""
    native = module()
    return dict(native.build_info()) if native else {}


def why_not_cpu() -> str | None:
    """Why the CPU kernels cannot run, or None."""
    return None if module() else "the native module chattn_cuda._C was not built"


def why_not_cuda() -> str | None:
    """Why the CUDA kernels cannot run, as far as the build decides it, or None."""
    if module() is None:
        return why_not_cpu()
    info = build_info()
    return None if info["cuda"] else f"built without CUDA kernels ({info['cuda_note']})"
