"""How the networks are put together: other libraries' networks, our blocks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from chattn_cuda import validation
from chattn_cuda.modules import SqueezeExcite

__all__ = ["library", "squeeze_excite", "swap", "timm_model"]


def library(name: str) -> Any:
    """The module ``name`` of another library.

    Raises:
        ImportError: The library is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # it is there, and misses something of its own
        message = f"chattn_cuda.models needs {package}: pip install {package}"
        raise ImportError(message, name=package) from error


def timm_model(name: str, **kwargs: Any) -> nn.Module:
    """A network of timm by its name, with random weights unless ``kwargs`` say otherwise."""
    model: nn.Module = library("timm").create_model(name, **kwargs)
    return model


def swap(model: nn.Module, cls: type[nn.Module], make: Callable[[Any], nn.Module]) -> nn.Module:
    """Put ``make(module)`` in the place of every ``cls`` inside ``model``, with its weights.

    Returns:
        ``model``, changed in place.

    Raises:
        ValueError: There is no ``cls`` in it.
        RuntimeError: What ``make`` returns has other state_dict keys or shapes.
    """
    names = [name for name, module in model.named_modules() if type(module) is cls]
    if not names:
        raise ValueError(f"{type(model).__name__} holds no {cls.__name__}")
    for name in names:
        old = model.get_submodule(name)
        new = make(old)
        new.load_state_dict(old.state_dict())
        model.set_submodule(name, new.train(old.training))
    return model


def squeeze_excite(channels: int, reduction: int, backend: str) -> SqueezeExcite:
    """The paper's block: channels // reduction hidden values, and biases."""
    check_reduction(reduction, channels)
    return SqueezeExcite(channels, rd_channels=channels // reduction, backend=backend)


def check_reduction(reduction: int, channels: int) -> None:
    """Raise unless ``reduction`` leaves at least one hidden value.

    Raises:
        TypeError: Not an integer.
        ValueError: Below 1, or above ``channels``, the fewest that a block of the network has.
    """
    validation.check_positive(reduction, "reduction")
    if reduction > channels:
        raise ValueError(f"reduction must be at most {channels} here, got {reduction}")
