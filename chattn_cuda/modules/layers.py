"""What modules read of the layers that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from chattn_cuda import activations, functional
from chattn_cuda.hooks import own_behaviour
from chattn_cuda.modules import memory

__all__ = [
    "are_pointwise",
    "child",
    "children",
    "gate_of",
    "is_global_average_pool",
    "parameter",
    "pointwise_obstacle",
    "submodule_obstacle",
    "tensors_at",
]

_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def child(module: Any, name: str) -> Any:
    """``module.<name>``, for a submodule: nn.Module's own way takes ten times as long."""
    found = module._modules.get(name)
    return getattr(module, name) if found is None else found


def children(module: Any, *names: str) -> list[Any]:
    """`child` for several names."""
    own, found = module._modules, []
    for name in names:
        layer = own.get(name)
        found.append(getattr(module, name) if layer is None else layer)
    return found


def parameter(module: Any, name: str) -> Any:
    """``module.<name>``, for a parameter or buffer, which may be None."""
    for tensors in (module._parameters, module._buffers):
        if name in tensors:
            return tensors[name]
    return getattr(module, name)


def tensors_at(places: Sequence[memory.Place]) -> list[Any]:
    """`parameter` for several places; None where there is no layer."""
    found: list[Any] = []
    for layer, name in places:
        if layer is None:
            found.append(None)
        elif name in layer._parameters:
            found.append(layer._parameters[name])
        elif name in layer._buffers:
            found.append(layer._buffers[name])
        else:
            found.append(getattr(layer, name))
    return found


def is_global_average_pool(module: Any) -> bool:
    """Whether ``module`` is an adaptive average pooling to one position."""
    if type(module) not in _POOLS:
        return False
    size = module.output_size
    return all(s == 1 for s in (size if isinstance(size, tuple) else (size,)))


def gate_of(module: Any, name: str = "gate") -> functional.Resolved | str:
    """The gate that the operators know ``module`` as, or why they do not."""
    gate = activations.resolve(module)
    if gate is None or not gate[0].is_gate:
        return f"the kernels do not know {name} ({type(module).__name__})"
    return gate


def submodule_obstacle(module: Any, name: str, *types: type[nn.Module]) -> str | None:
    """Why reading ``module``'s parameters would not be the same as calling it; None where it is.

    Exact types only: LoRA, quantised and parametrised layers are other classes.
    """
    if type(module) not in types:
        return f"{name} is a {type(module).__name__}"
    own = own_behaviour(module)
    return None if own is None else f"{name} {own}"


def are_pointwise(*modules: Any, groups: int = 1) -> bool:
    """Whether they are 1x1 convolutions or linear layers, of these classes themselves."""
    for m in modules:
        if type(m) is nn.Conv2d:
            if m.kernel_size != (1, 1) or m.groups != groups or m.padding not in _NO_PADDING:
                return False
        elif type(m) is not nn.Linear or groups != 1:
            return False
    return True


_NO_PADDING = ((0, 0), "valid")


def pointwise_obstacle(
    module: Any, name: str, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
) -> str | None:
    """Why ``module`` is not a plain 1x1 convolution or linear layer; None where it is one."""
    reason = submodule_obstacle(module, name, *kinds)
    if (
        reason is None
        and isinstance(module, nn.Conv2d)
        and not (
            module.kernel_size == (1, 1) and module.groups == 1 and module.padding in _NO_PADDING
        )
    ):
        reason = f"{name} is not a 1x1 convolution"
    return reason
