"""The activations and gates that the fused kernels know, and how users name them.

The codes are part of the operator schemas; csrc/common/activation.h lists the same ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda.hooks import own_behaviour, qualified_name
from chattn_cuda.methods import is_own

__all__ = [
    "ACTIVATIONS", "Activation", "ActivationSpec", "as_callable", "make_layer", "of_layer",
    "resolve",
]  # fmt: skip

ActivationSpec = str | type[nn.Module] | nn.Module | Callable[..., Any]
"""What users may pass: a name, a module class or instance, a partial, a function."""


@dataclass(frozen=True)
class Activation:
    """One activation of the fused kernels.

    Attributes:
        name: The canonical name.
        code: The number that the operators take.
        function: ``function(z, param)`` in PyTorch, for the reference.
        layer: ``layer()`` makes the equivalent module.
        param: Default of the parameter (negative slope, alpha); 0 where there is none.
        is_gate: Whether it can be a gate: its derivative follows from its value alone.
    """

    name: str
    code: int
    function: Callable[[Tensor, float], Tensor]
    layer: Callable[..., nn.Module]
    param: float = 0.0
    is_gate: bool = False

    def with_param(self, param: float) -> Callable[[Tensor], Tensor]:
        """The function of one tensor."""
        return lambda z: self.function(z, param)


_gelu_tanh = functools.partial(F.gelu, approximate="tanh")


def _hard_swish(z: Tensor) -> Tensor:
    y = F.hardswish(z)
    if z.dtype != torch.float64:
        return y
    # CUDA's has a float32 1/6. Its gradient has not, and stays.
    missing = (z * F.relu6(z + 3) / 6 - y).detach()
    return y + torch.where(missing.isfinite(), missing, 0)


def _hard_sigmoid(z: Tensor) -> Tensor:
    return F.relu6(z + 3) / 6  # the gradient of F.hardsigmoid has a float32 1/6, also in float64


ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("identity", 0, lambda z, _: z, nn.Identity, is_gate=True),
        Activation("relu", 1, lambda z, _: F.relu(z), nn.ReLU, is_gate=True),
        Activation("relu6", 2, lambda z, _: F.relu6(z), nn.ReLU6),
        Activation("leaky_relu", 3, lambda z, p: F.leaky_relu(z, p), nn.LeakyReLU, param=0.01),
        Activation("silu", 4, lambda z, _: F.silu(z), nn.SiLU),
        Activation("hard_swish", 5, lambda z, _: _hard_swish(z), nn.Hardswish),
        Activation("gelu", 6, lambda z, _: F.gelu(z), nn.GELU),
        Activation("gelu_tanh", 7, lambda z, _: _gelu_tanh(z), functools.partial(nn.GELU, "tanh")),
        Activation("mish", 8, lambda z, _: F.mish(z), nn.Mish),
        Activation("elu", 9, lambda z, p: F.elu(z, p), nn.ELU, param=1.0),
        Activation("sigmoid", 10, lambda z, _: torch.sigmoid(z), nn.Sigmoid, is_gate=True),
        Activation("hard_sigmoid", 11, lambda z, _: _hard_sigmoid(z), nn.Hardsigmoid, is_gate=True),
        Activation("tanh", 12, lambda z, _: torch.tanh(z), nn.Tanh, is_gate=True),
    )
}

_ALIASES = {"swish": "silu", "hardswish": "hard_swish", "hardsigmoid": "hard_sigmoid"}


class _QuickGELU(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(1.702 * z)


class _HardMish(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * z * (z + 2).clamp(min=0, max=2)


# Names that timm's create_act takes and the kernels do not: they run as PyTorch modules.
_UNFUSED: dict[str, Callable[..., nn.Module]] = {
    "celu": nn.CELU,
    "selu": nn.SELU,
    "prelu": nn.PReLU,
    "quick_gelu": _QuickGELU,
    "hard_mish": _HardMish,
}

# Exact types only: a subclass may compute something else.
_MODULES: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hard_swish",
    nn.GELU: "gelu",
    nn.Mish: "mish",
    nn.ELU: "elu",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hard_sigmoid",
    nn.Tanh: "tanh",
}

# timm's own classes, known by name so that timm need not be imported.
_TIMM_MODULES: dict[str, str] = {
    f"timm.layers.{module}.{name}{suffix}": activation
    for module, suffix in (("activations", ""), ("activations_me", "Me"))
    for name, activation in {
        "Swish": "silu",
        "Mish": "mish",
        "Sigmoid": "sigmoid",
        "Tanh": "tanh",
        "HardSwish": "hard_swish",
        "HardSigmoid": "hard_sigmoid",
        "GELU": "gelu",
        "GELUTanh": "gelu_tanh",
    }.items()
}

_FUNCTIONS: dict[Callable[..., Any], str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    F.leaky_relu: "leaky_relu",
    F.silu: "silu",
    F.hardswish: "hard_swish",
    F.gelu: "gelu",
    F.mish: "mish",
    F.elu: "elu",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    F.hardsigmoid: "hard_sigmoid",
    F.tanh: "tanh",
    torch.tanh: "tanh",
}


def resolve(spec: ActivationSpec, argument: str = "act") -> tuple[Activation, float] | None:
    """The activation that ``spec`` names and its parameter.

    Args:
        spec: A name ("relu", "swish", "hard_sigmoid", ...), a module class or instance, a
            ``functools.partial`` of a class, or a function of ``torch`` or
            ``torch.nn.functional``.
        argument: The caller's argument, for error messages.

    Returns:
        The activation and its parameter, or None where the fused path does not cover ``spec``
        (PReLU, subclasses, modules with hooks, functions of the user's own).

    Raises:
        ValueError: An unknown name.
        TypeError: ``spec`` is neither a string nor callable.
    """
    if isinstance(spec, nn.Module):
        return _resolve_module(spec)
    if isinstance(spec, str):
        name = _canonical(spec, argument)
        return _default(name) if name in ACTIVATIONS else None
    if isinstance(spec, type):
        known = spec in _MODULES or _timms(spec) is not None
        return _resolve_module(spec()) if known else None
    if isinstance(spec, functools.partial):
        return resolve(spec(), argument) if isinstance(spec.func, type) else None
    if callable(spec):
        try:
            return _default(_FUNCTIONS[spec]) if spec in _FUNCTIONS else None
        except TypeError:  # an unhashable callable
            return None
    raise TypeError(
        f"{argument} must be an activation's name, module class, module or function, "
        f"got {type(spec).__name__}"
    )


def make_layer(
    spec: ActivationSpec, argument: str = "act_layer", inplace: bool | None = None
) -> nn.Module:
    """A module for an ``act_layer``/``gate_layer`` argument, as timm's ``create_act_layer`` does.

    Args:
        spec: A name, a module class, or a partial or factory that returns a module.
        argument: The caller's argument, for error messages.
        inplace: Passed on as ``inplace=`` where the class takes it.

    Raises:
        ValueError: An unknown name.
        TypeError: ``spec`` is neither a string nor callable.
    """
    factory: Callable[..., Any]
    if isinstance(spec, str):
        name = _canonical(spec, argument)
        factory = ACTIVATIONS[name].layer if name in ACTIVATIONS else _UNFUSED[name]
    elif callable(spec) and not isinstance(spec, nn.Module):
        factory = spec
    else:
        kind = f"a {type(spec).__name__} object"
        raise TypeError(f"{argument} must be an activation's name, class or factory, got {kind}")
    if inplace is None:
        return factory()
    try:
        return factory(inplace=inplace)
    except TypeError:  # a class without that argument
        return factory()


def as_callable(spec: ActivationSpec, argument: str = "act") -> Callable[[Tensor], Tensor]:
    """A function of one tensor that computes ``spec`` with PyTorch's own operations."""
    covered = resolve(spec, argument)
    if covered is not None:
        activation, param = covered
        return activation.with_param(param)
    if isinstance(spec, str) or isinstance(spec, type):
        spec = make_layer(spec, argument)
    elif isinstance(spec, functools.partial) and isinstance(spec.func, type):
        spec = spec()
    if isinstance(spec, nn.Module):
        return functools.partial(in_its_type, spec)
    function: Any = spec
    return function


def in_its_type(module: Any, x: Tensor) -> Tensor:
    """``module(x)`` with x in the type of its parameters (or buffers); the result in x's."""
    numbers = itertools.chain(module.parameters(), module.buffers())
    first = next((t for t in numbers if t.is_floating_point()), None)
    # `Tensor.to` leaves an operation in exported programs, also where there is nothing to do.
    y = module(x if first is None or first.dtype == x.dtype else x.to(first.dtype))
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _canonical(name: str, argument: str) -> str:
    key = name.lower()
    key = _ALIASES.get(key, key)
    if key not in ACTIVATIONS and key not in _UNFUSED:
        known = ", ".join(sorted([*ACTIVATIONS, *_ALIASES, *_UNFUSED]))
        raise ValueError(f"{argument} is not a known activation: {name!r}; known are {known}")
    return key


def _default(name: str) -> tuple[Activation, float]:
    activation = ACTIVATIONS[name]
    return activation, activation.param


def _timms(cls: Any) -> str | None:
    """The name of a class of timm's, while it has its own forward."""
    name = _TIMM_MODULES.get(qualified_name(cls))
    return name if name is not None and is_own(cls, "forward") else None


def _resolve_module(module: Any) -> tuple[Activation, float] | None:
    found = of_layer(module)
    return found if found is not None and own_behaviour(module) is None else None


def of_layer(module: Any) -> tuple[Activation, float] | None:
    """The activation that the module's class is, with its parameter, whatever hooks there are."""
    cls = type(module)
    name = _MODULES.get(cls) or _timms(cls)
    if name is None:
        return None
    activation = ACTIVATIONS[name]
    if cls is nn.LeakyReLU:
        return activation, float(module.negative_slope)
    if cls is nn.ELU:
        return activation, float(module.alpha)
    if cls is nn.GELU and module.approximate == "tanh":
        activation = ACTIVATIONS["gelu_tanh"]
    return activation, activation.param
