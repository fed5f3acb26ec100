"""Home-made blocks that read something which may change without a trace, or draw numbers: left."""

from __future__ import annotations

import copy
import enum
import functools
import logging
import random
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda import accelerate, explain

CONFIG = types.SimpleNamespace(scale=1.0)
SETTINGS = types.ModuleType("settings")
SETTINGS.SCALE = 1.0  # type: ignore[attr-defined]
SETTINGS.inner = types.ModuleType("inner")  # type: ignore[attr-defined]
SETTINGS.inner.FACTOR = 1.0  # type: ignore[attr-defined]
FACTOR = 1.0
LAST: Any = None
OPTIONS = {"scale": 1.0}


class Switch:
    on = True


class Mode(enum.Enum):
    PLAIN = 1


class Block(nn.Module):
    """SE; subclasses read more."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 4), nn.Linear(4, 16)

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def with_forward(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return type("Home", (Block,), {"forward": forward, "__module__": __name__})()


def helper(x: Tensor, options: Any = OPTIONS) -> Tensor:
    return x * options["scale"]


def remembering(x: Tensor) -> Tensor:
    return x * remembering.scale  # type: ignore[attr-defined, no-any-return]


remembering.scale = 1.0  # type: ignore[attr-defined]


def scaled_gate(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * FACTOR


def with_a_function() -> nn.Module:
    module = with_forward(
        lambda self, x: x * self.own(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))[:, :, None, None]
    )
    module.own = scaled_gate
    return module


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, x: Tensor) -> Any:
        return function(self, x) if CONFIG.scale == 1 else x

    return wrapper


def printing() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        print("called")
        return x * self.gate(x)

    return with_forward(forward)


def logging_it() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        logging.warning("called")
        return x * self.gate(x)

    return with_forward(forward)


def writing() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        with open("/dev/null", "a") as file:
            file.write("called")
        return x * self.gate(x)

    return with_forward(forward)


def saving() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        torch.save(x.shape, "/dev/null")
        return x * self.gate(x)

    return with_forward(forward)


def keeping_in_the_result() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        y = x * self.gate(x)
        y.last = x.shape
        return y

    return with_forward(forward)


def keeping_in_a_global() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        global LAST
        LAST = x.shape
        return x * self.gate(x)

    return with_forward(forward)


def own_autocast() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            s = self.gate(x)
        return x * s

    return with_forward(forward)


def summed_over_processes() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        s = self.gate(x)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(s)
        return x * s

    return with_forward(forward)


def with_gradients() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        with torch.enable_grad():
            return x * self.gate(x)

    return with_forward(forward)


class Keeping(Block):
    """It sets an attribute of its own: that is tried out."""

    def forward(self, x: Tensor) -> Tensor:
        self.channels = x.shape[1]
        return x * self.gate(x)


def labelled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        with torch.profiler.record_function("se"):
            return x * self.gate(x)

    return with_forward(forward)


class Computed(Block):
    def __getattr__(self, name: str) -> Any:
        return 1.0 if name == "boost" else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x) * self.boost


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "stochastic": (
        lambda: with_forward(
            lambda s, x: x if s.training and torch.rand(()) < 0.1 else x * s.gate(x)
        ),
        "differs in train mode",
    ),
    "stochastic, by Python": (
        lambda: with_forward(
            lambda s, x: x if s.training and random.random() < 0.1 else x * s.gate(x)
        ),
        "draws random numbers",
    ),
    "stochastic, without the block": (
        lambda: with_forward(
            lambda s, x: x if s.training and random.random() < 1 else x * s.gate(x)
        ),
        "differs in train mode",
    ),
    "a module's number": (
        lambda: with_forward(lambda s, x: x * s.gate(x) * SETTINGS.SCALE), "SETTINGS.SCALE",
    ),
    "a module's in a module": (
        lambda: with_forward(lambda s, x: x * s.gate(x) * SETTINGS.inner.FACTOR),
        "SETTINGS.inner.FACTOR",
    ),
    "a class's": (
        lambda: with_forward(lambda s, x: x * s.gate(x) if Switch.on else x), "Switch.on",
    ),
    "a function's": (
        lambda: with_forward(lambda s, x: remembering(x) * s.gate(x)), "remembering.scale",
    ),
    "a default": (lambda: with_forward(lambda s, x: helper(x) * s.gate(x)), "a default of helper"),
    "a function in an attribute": (with_a_function, "the global FACTOR"),
    "a decorator": (
        lambda: with_forward(decorated(lambda s, x: x * s.gate(x))), "the global CONFIG",
    ),
    "its type": (
        lambda: with_forward(lambda s, x: x * s.gate(x) if type(s) is not Block else x),
        "its own class",
    ),
    "what requires gradients": (
        lambda: with_forward(lambda s, x: x * s.gate(x) if s.fc1.weight.requires_grad else x),
        "requires_grad",
    ),
    "computed attributes": (Computed, "attributes that its class computes"),
    "another type under autocast": (
        lambda: with_forward(
            lambda s, x: (x.float() if torch.is_autocast_enabled("cpu") else x) * s.gate(x)
        ),
        "is_autocast_enabled",
    ),
    "its own autocast": (own_autocast, "the mode (autocast)"),
    "single samples in training": (
        lambda: with_forward(lambda s, x: x if s.training and len(x) < 2 else x * s.gate(x)),
        "something else for other maps",
    ),
    "a sum over processes": (summed_over_processes, "the mode (is_initialized)"),
    "gradients of its own": (with_gradients, "the mode (enable_grad)"),
    "a path of inference": (
        lambda: with_forward(
            lambda s, x: x if torch.is_inference_mode_enabled() else x * s.gate(x)
        ),
        "is_inference_mode_enabled",
    ),
    "one position": (
        lambda: with_forward(lambda s, x: x if x.shape[2:] == (1, 1) else x * s.gate(x)),
        "something else for other maps",
    ),
    "a format of its own": (
        lambda: with_forward(lambda s, x: (x * s.gate(x)).contiguous()),
        "something else for other maps",
    ),
    "a print": (printing, "calls print"),
    "a log": (logging_it, "calls warning"),
    "a file": (writing, "calls open"),
    "a file of torch's": (saving, "calls save"),
    "an attribute of the result": (keeping_in_the_result, "sets last"),
    "a global that is set": (keeping_in_a_global, "sets LAST"),
    "a mode without gradients": (
        lambda: with_forward(
            lambda s, x: x if s.training and not torch.is_grad_enabled() else x * s.gate(x)
        ),
        "the mode (is_grad_enabled)",
    ),
    "its place in a graph": (
        lambda: with_forward(lambda s, x: x * s.gate(x) if x.is_leaf else x), "reads is_leaf",
    ),
    "a label of the profiler": (labelled, "calls record_function"),
    "a pool in float32": (
        lambda: with_forward(lambda s, x: x * s.gate(x.float()).type_as(x)),
        "fails on a small map in float64",
    ),
    "a number of the map": (
        lambda: with_forward(lambda s, x: x if x[0, 0, 0, 0].item() == 0 else x * s.gate(x)),
        "calls item",
    ),
    "strides of the map": (
        lambda: with_forward(lambda s, x: x * s.gate(x) if x.is_contiguous() else x),
        "calls is_contiguous",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_left_and_named(name: str) -> None:
    make, reason = LEFT[name]
    random.seed(0)
    module = make()
    report = accelerate(nn.Sequential(module))
    assert not report.changed
    assert reason in report.left[0].note


def test_constants_are_no_reason() -> None:
    module = with_forward(lambda s, x: x * s.gate(x) if Mode.PLAIN is Mode.PLAIN else x)
    assert accelerate(nn.Sequential(module)).changed


def test_an_attribute_that_stays_the_same_is_no_reason() -> None:
    module = Keeping()
    module.channels = 16
    assert accelerate(nn.Sequential(module)).changed


@pytest.mark.parametrize("name", ["the gate", "the map"])
def test_a_result_in_the_weights_type(name: str) -> None:
    """Under autocast, where they differ from the map's; otherwise the operators run."""
    forward = {
        "the gate": lambda s, x: x * s.gate(x).type_as(s.fc1.weight),
        "the map": lambda s, x: x.to(s.fc1.weight.dtype) * s.gate(x),
    }[name]
    module = with_forward(forward)
    fast = copy.deepcopy(module)
    assert accelerate(fast).changed
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(fast(x), module(x))
    with torch.autocast("cpu", torch.bfloat16):
        for t in (torch.bfloat16, torch.float32):
            torch.testing.assert_close(fast(x.to(t)), module(x.to(t)), rtol=1e-2, atol=1e-2)
    assert "float32 weights" in str(explain(fast, x.bfloat16()))


class Anew:
    """A descriptor that gives another function each time."""

    def __get__(self, owner: Any, cls: Any = None) -> Callable[..., Tensor]:
        plain = Block.forward
        return types.MethodType(plain, owner) if owner else lambda self, x: plain(self, x)


def logged(self: Any, name: str, x: Tensor) -> Tensor:
    return x * self.gate(x)


@pytest.mark.parametrize("forward", [functools.partialmethod(logged, "block"), Anew()])
@pytest.mark.parametrize("inside", [False, True])
def test_a_forward_that_is_made_anew_each_time(forward: Any, inside: bool) -> None:
    block: nn.Module = with_forward(forward)
    if inside:

        class Around(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = block

            def forward(self, x: Tensor) -> Tensor:
                return x * self.block(x).mean((2, 3), keepdim=True).sigmoid()

        block = Around()
    model = nn.Sequential(block, Block())
    x = torch.randn(2, 16, 5, 5)
    expected = model(x)
    report = accelerate(model)
    assert [entry.name for entry in report.changed] == ["1"]
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert "its forward is another function at each call" in str(report)
