"""What the functions of all blocks share: maps of any rank, which calls the operators cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from chattn_cuda import backends, compiled, ops, validation
from chattn_cuda.activations import Activation

__all__ = [
    "MAXIMUM",
    "Resolved",
    "exported_plainly",
    "from_map",
    "run",
    "to_map",
    "why_not_fused",
]

Resolved = tuple[Activation, float]
"""An activation of the kernels and its parameter."""

MAXIMUM = "the kernels squeeze with the mean alone, without a maximum (add_maxpool)"
"""Why a squeeze with a maximum is not fused."""


def to_map(x: Tensor, channel_dim: int = 1, channels: int | None = None) -> Tensor:
    """``x`` as a map (N, C, H, W).

    A view wherever one exists: always, but for some strides of five axes.

    Args:
        x: (N, C, L), (N, C, H, W) or (N, C, D, H, W); (N, L, C) and so on for channel_dim = -1.
        channel_dim: Where the channels are: 1 or -1.
        channels: The expected C, if known.

    Raises:
        TypeError: As `chattn_cuda.validation.check_map`.
        ValueError: As `chattn_cuda.validation.check_map`; another channel_dim.
    """
    validation.check_channel_dim(channel_dim)
    validation.check_map(x, channels, any_rank=True, channel_dim=channel_dim)
    if channel_dim == -1:
        x = x.movedim(-1, 1)
    if x.dim() == 3:
        return x.unsqueeze(2)
    return x.flatten(2, 3) if x.dim() == 5 else x


def from_map(y: Tensor, x: Tensor, channel_dim: int = 1) -> Tensor:
    """The view of a result ``y`` of the map `to_map` made of ``x`` with x's axes."""
    if x.dim() == 3:
        y = y.squeeze(2)
    elif x.dim() == 5:
        first = 2 if channel_dim == 1 else 1
        y = y.unflatten(2, (x.shape[first], x.shape[first + 1]))
    return y.movedim(1, -1) if channel_dim == -1 else y


def exported_plainly(backend: str) -> bool:
    """Whether a program is exported that must run without this package: it gets the formulas.

    Who names a backend keeps its operators, but for ONNX, which knows none.
    """
    exporting = compiled.is_exporting()
    return exporting and (backend == "auto" or torch.onnx.is_in_onnx_export())


def why_not_fused(
    x: Tensor, weights: Sequence[Tensor | None], compiling: bool | None = None
) -> str | None:
    """Why the operators cannot take these tensors, whatever the block; None where they can.

    ``compiling``: what torch.compiler.is_compiling says, where that is known.
    """
    for t in (x, *weights):
        kind = type(t)
        if kind is not Tensor and kind is not torch.nn.Parameter and kind is not type(None):
            if hasattr(kind, "__tensor_flatten__") or _computes(kind):
                return f"an argument is a {kind.__name__}"
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        return f"x has empty planes, shape {tuple(x.shape)}"
    if torch.compiler.is_compiling() if compiling is None else compiling:
        if torch._C._are_functorch_transforms_active():
            return "torch.func inside torch.compile cannot differentiate the operators"
    elif forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    elif torch._C._are_functorch_transforms_active() and _is_vmapped():
        return "torch.func.vmap would call the operators once per sample"
    return None


def _is_vmapped() -> bool:
    stack = torch._C._functorch.get_interpreter_stack()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack or ())


def _computes(kind: Any) -> bool:
    """Whether a subclass of tensors has functions of torch do something of its own."""
    function = kind.__torch_function__
    if function is torch._C._disabled_torch_function_impl:
        return False
    return getattr(function, "__func__", None) is not Tensor.__torch_function__.__func__  # type: ignore[attr-defined]


def run(
    block: str,
    backend: str,
    x: Tensor,
    tensors: Sequence[Tensor | None],
    constants: Sequence[Any],
) -> tuple[Tensor, Tensor]:
    """Returns y and the gate by ``backend``, on arguments that were checked.

    Args:
        block: Its name.
        backend: Its name; "reference" runs the block's formulas.
        x: The map (N, C, H, W).
        tensors: What the block's operators take beside it.
        constants: And behind these.
    """
    namespace = backends.get(backend).namespace
    if namespace is None:
        y, gate = ops.BLOCKS[block].formulas(x, *tensors, *constants)
        return ops.in_format_of(x, y), gate
    dense = [t if t is None or t.is_contiguous() else t.contiguous() for t in tensors]
    return ops.apply(block, namespace, x, *dense, *constants)
