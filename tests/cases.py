"""The case table: block x backend x dtype x layout x shape. A new block adds one `Block` row.

A block brings its inputs, the call under test, and the same in plain PyTorch (what a user would
write without this package, whose error is the yardstick). Everything else is generic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chattn_cuda import activations, backends, functional
from tests import host_backend

host_backend.register()
HAS_GPU = torch.cuda.is_available()
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LARGE = {torch.float16: "nchw", torch.bfloat16: "nhwc", torch.float64: "nchw"}


@dataclass(frozen=True)
class Config:
    """One size and set of options."""

    name: str
    shape: tuple[int, int, int, int]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_large(self) -> bool:
        """Takes a second or more: run with one layout per dtype, float32 with both."""
        return math.prod(self.shape) > 50_000


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        name: Its name.
        parameters: ``parameters(config, random)``: the weights by name, float64.
        run: ``run(x, parameters, options, backend)`` returns (y, gate) by the package.
        eager: ``eager(x, parameters, options)`` returns (y, gate) in plain PyTorch.
        shapes: Sizes, for the backends that are fast.
        small: Sizes for the slow ones (interpreters), each meant to hit another corner.
        options: Variants, run on one small size.
    """

    name: str
    parameters: Callable[[Config, Callable[..., Tensor]], dict[str, Tensor | None]]
    run: Callable[..., tuple[Tensor, Tensor]]
    eager: Callable[..., tuple[Tensor, Tensor]]
    shapes: tuple[Config, ...]
    small: tuple[Config, ...]
    options: tuple[Config, ...]


# ---- layouts -----------------------------------------------------------------------------------


def _dense(x: Tensor) -> Tensor:
    return x.contiguous()


def _nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _channel_slice(x: Tensor) -> Tensor:
    return torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]]


def _nhwc_channel_slice(x: Tensor) -> Tensor:
    return _nhwc(torch.cat([x, x, x], 1))[:, x.shape[1] : 2 * x.shape[1]]


def _crop(x: Tensor) -> Tensor:
    return F.pad(x, (1, 2, 2, 1))[:, :, 2 : 2 + x.shape[2], 1 : 1 + x.shape[3]]


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def _expanded(x: Tensor) -> Tensor:
    return x[:, :, :1].expand(x.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": _dense,
    "nhwc": _nhwc,
    "channel_slice": _channel_slice,
    "nhwc_channel_slice": _nhwc_channel_slice,
    "crop": _crop,
    "transposed": _transposed,
    "expanded": _expanded,
}


# ---- Squeeze-and-Excitation --------------------------------------------------------------------


def _se_parameters(config: Config, random: Callable[..., Tensor]) -> dict[str, Tensor | None]:
    c = config.shape[1]
    rd = config.options.get("rd", 8)
    tail = (1, 1) if config.options.get("conv", False) else ()
    bias = config.options.get("bias", True)
    return {
        "w1": random(rd, c, *tail) / c**0.5,
        "b1": 0.3 * random(rd) + 0.3 if bias else None,
        "w2": random(c, rd, *tail) / rd**0.5,
        "b2": 0.5 * random(c) if bias else None,
    }


def _se_run(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any], backend: str
) -> tuple[Tensor, Tensor]:
    return functional.squeeze_excite(
        x,
        **parameters,
        act=options.get("act", "relu"),
        gate=options.get("gate", "sigmoid"),
        add_maxpool=options.get("add_maxpool", False),
        return_gate=True,
        backend=backend,
    )


def _se_eager(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    act = options.get("act", "relu")
    if not isinstance(act, torch.nn.Module):
        act = activations.make_layer(act)
    gate = activations.make_layer(options.get("gate", "sigmoid"))
    w1, b1, w2, b2 = parameters.values()
    s = x.mean((2, 3))
    if options.get("add_maxpool", False):
        s = 0.5 * s + 0.5 * x.amax((2, 3))
    s = gate(F.linear(act(F.linear(s, w1.flatten(1), b1)), w2.flatten(1), b2))
    return x * s[:, :, None, None], s


_SE_VARIANTS = (
    *({"act": a} for a in activations.ACTIVATIONS),
    *({"gate": a.name} for a in activations.ACTIVATIONS.values() if a.is_gate),
    {"act": "leaky_relu", "gate": "hard_sigmoid", "conv": True},
    {"act": torch.nn.LeakyReLU(0.3), "bias": False},
    {"act": torch.nn.ELU(0.7), "gate": "tanh", "conv": True, "bias": False},
    {"add_maxpool": True},
    {"add_maxpool": True, "act": "silu", "gate": "hard_sigmoid", "conv": True},
)


def _name(options: dict[str, Any]) -> str:
    return "-".join(k if v is True else f"{k}={v}" for k, v in options.items())


BLOCKS: dict[str, Block] = {
    "se": Block(
        "se",
        _se_parameters,
        _se_run,
        _se_eager,
        shapes=(
            Config("stage1", (1, 256, 56, 56), {"rd": 16, "conv": True}),
            Config("stage4", (4, 2048, 7, 7), {"rd": 128, "conv": True}),
            Config("c228", (2, 228, 28, 28), {"rd": 19}),
            Config("c300", (2, 300, 14, 14), {"rd": 25}),
            Config("hw1", (3, 33, 1, 1), {"rd": 5}),
            Config("hw197", (2, 24, 1, 197), {"rd": 7}),
            Config("hw361", (2, 17, 19, 19), {"rd": 19}),
            Config("hw90000", (1, 9, 300, 300), {"rd": 3}),
            Config("wide", (2, 3840, 3, 3), {"rd": 160}),
            Config("batch", (70, 20, 5, 5), {"rd": 6}),
            Config("batch_wide", (70, 256, 1, 2), {"rd": 40}),
            Config("maxpool", (2, 65, 14, 14), {"rd": 16, "add_maxpool": True}),
            Config("one", (1, 1, 1, 1), {"rd": 1, "act": "silu"}),
            Config("empty", (0, 8, 4, 4), {"rd": 4}),
        ),
        small=(
            Config("hw25", (2, 20, 5, 5), {"rd": 6}),
            Config("hw49", (3, 17, 7, 7), {"rd": 19, "conv": True}),
            Config("hw1", (5, 33, 1, 1), {"rd": 5, "bias": False}),
            Config("hw361", (1, 8, 19, 19), {"rd": 2}),
            Config("maxpool", (2, 12, 6, 5), {"rd": 4, "add_maxpool": True}),
            Config("one", (1, 1, 1, 1), {"rd": 1, "act": "silu"}),
            Config("empty", (0, 8, 4, 4), {"rd": 4}),
        ),
        options=tuple(Config(_name(o), (3, 18, 5, 7), {"rd": 6, **o}) for o in _SE_VARIANTS),
    )
}


# ---- the table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One test."""

    block: str
    backend: str
    config: Config
    dtype: torch.dtype
    layout: str
    # Of the gradient that comes in; "sum" is what y.sum().backward() hands over: strides of 0.
    grad_layout: str = "same"

    @property
    def id(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        parts = [self.block, self.backend, self.config.name, dtype, self.layout]
        return "-".join(parts + [f"grad_{self.grad_layout}"] * (self.grad_layout != "same"))

    @property
    def device(self) -> str:
        return device_of(self.backend)


def device_of(backend: str) -> str:
    """Where a backend's tensors live in the tests."""
    return "cuda" if backend == "cuda" or (backend == "triton" and HAS_GPU) else "cpu"


def is_slow(backend: str) -> bool:
    """Whether a backend gets the small sizes: Triton's interpreter, and the oracle itself."""
    return backend not in ("cpu", host_backend.NAME) and device_of(backend) == "cpu"


def unavailable(backend: str) -> str | None:
    """Why a backend cannot be tested here."""
    if backend == host_backend.NAME and (reason := host_backend.load()) is not None:
        return reason
    return backends.why_not(backend, device_of(backend))


def _cases_of(block: Block, backend: str) -> Iterator[Case]:
    slow = is_slow(backend)
    few = block.small[:2]
    for config in block.small if slow else block.shapes + block.small:
        for dtype in DTYPES:
            for layout in ("nchw", "nhwc"):
                if slow and dtype != torch.float32 and config not in few:
                    continue
                if config.is_large and dtype != torch.float32 and layout != _LARGE[dtype]:
                    continue
                yield Case(block.name, backend, config, dtype, layout)
    for config in block.options:
        yield Case(block.name, backend, config, torch.float32, "nchw")
        if not slow:
            yield Case(block.name, backend, config, torch.bfloat16, "nhwc")
            yield Case(block.name, backend, config, torch.float64, "nhwc")
    for config in few[:1] if slow else few:
        for dtype in DTYPES[:1] if slow else DTYPES[:2]:
            for layout in list(LAYOUTS)[2:]:
                yield Case(block.name, backend, config, dtype, layout)
            for layout, grad in (("nchw", "nhwc"), ("nhwc", "nchw"), ("nhwc", "channel_slice")):
                yield Case(block.name, backend, config, dtype, layout, grad)
            for layout in ("nchw", "nhwc"):
                yield Case(block.name, backend, config, dtype, layout, "sum")


def table() -> list[Any]:
    """All cases as pytest parameters; those that need a GPU are marked."""
    return [
        pytest.param(case, id=case.id, marks=[pytest.mark.gpu] * (case.device == "cuda"))
        for block in BLOCKS.values()
        for backend in backends.names()
        for case in _cases_of(block, backend)
    ]


def fused_backends() -> list[Any]:
    """The backends with operators, as pytest parameters."""
    return [
        pytest.param(name, marks=[pytest.mark.gpu] * (device_of(name) == "cuda"))
        for name in backends.names()
        if backends.get(name).namespace is not None
    ]


def require(backend: str) -> None:
    """Skip the test, with the reason, where ``backend`` cannot run."""
    reason = unavailable(backend)
    if reason is not None:
        pytest.skip(f"backend {backend}: {reason}")


@dataclass
class Inputs:
    """The tensors of a case, rounded to its dtype; ``to`` makes leaves for one run."""

    x: Tensor
    parameters: dict[str, Tensor | None]
    dy: Tensor
    dgate: Tensor
    dtype: torch.dtype
    layout: str
    grad_layout: str

    def to(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, dict[str, Any], Tensor]:
        x = LAYOUTS[self.layout](self.x.to(device, dtype)).detach().requires_grad_()
        parameters = {
            k: None if p is None else p.to(device, dtype).detach().requires_grad_()
            for k, p in self.parameters.items()
        }
        if self.grad_layout == "sum":
            dy = torch.ones((), dtype=dtype, device=device).expand(x.shape)
        else:
            layout = self.layout if self.grad_layout == "same" else self.grad_layout
            dy = LAYOUTS[layout](self.dy.to(device, dtype))
        return x, parameters, dy


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """The same tensors for the exact value, for eager PyTorch and for the backend under test."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def rounded(t: Tensor) -> Tensor:
        return t.to(case.dtype).double()

    n, c, _, _ = case.config.shape
    parameters = BLOCKS[case.block].parameters(case.config, random)
    x = random(*case.config.shape) + random(1, c, 1, 1)
    return Inputs(
        LAYOUTS[case.layout](rounded(x)),
        {k: None if p is None else rounded(p) for k, p in parameters.items()},
        rounded(random(*case.config.shape)),
        random(n, c),
        case.dtype,
        case.layout,
        case.grad_layout,
    )
