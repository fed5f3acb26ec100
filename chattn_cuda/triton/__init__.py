"""The Triton backend. Importing this package does not import triton.

``why_not()`` says whether it can run, ``registration.register()`` defines its operators.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import torch

__all__ = ["interpreting", "why_not"]

_ON = ("1", "true", "yes", "on", "y")
# What the kernels are compiled for in the tests; bfloat16 arithmetic needs it too.
_MIN_CAPABILITY = (8, 0)


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors (TRITON_INTERPRET=1).

    Triton reads the variable when a kernel is defined; after that, changes have no effect.
    """
    kernels = sys.modules.get(f"{__name__}.kernels.activations")
    if kernels is not None:
        return bool(kernels.INTERPRETED.value)
    return os.environ.get("TRITON_INTERPRET", "0").lower() in _ON


def _installed() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):  # an import hook, or sys.modules["triton"] = None
        return False


def why_not(device: torch.device | str | None = None) -> str | None:
    """Why the kernels cannot run on ``device``, or None if they can.

    Args:
        device: where the tensors are; None asks whether there is any device to run on.
    """
    if not _installed():
        return "triton is not installed (pip install triton)"
    kind = None if device is None else torch.device(device).type
    if interpreting() and kind in (None, "cpu"):
        return None
    if kind == "cpu":
        return "Triton runs on CPU tensors only in its interpreter (TRITON_INTERPRET=1)"
    if kind not in (None, "cuda"):
        return f"Triton kernels are for CUDA tensors, not for {kind}"
    if torch.version.hip is not None:
        return "the Triton kernels are for NVIDIA GPUs; this is a ROCm build of torch"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    index = None if device is None else torch.device(device).index
    capability = torch.cuda.get_device_capability(index)
    if capability < _MIN_CAPABILITY:
        needed, found = (f"{major}.{minor}" for major, minor in (_MIN_CAPABILITY, capability))
        return f"the Triton kernels need compute capability {needed}, this GPU has {found}"
    return None
