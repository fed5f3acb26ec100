"""The case table: block x backend x dtype x layout x shape.

A block brings its inputs, the call under test, and the same in plain PyTorch (what a user would
write without this package, whose error is the yardstick). Everything else is generic.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chattn_cuda import backends
from tests import host_backend
from tests.cases.block import Block, Config
from tests.cases.layouts import LAYOUTS

if TYPE_CHECKING:
    import pytest  # else where it is used: `python -m chattn_cuda traffic` does without

host_backend.register()
HAS_GPU = torch.cuda.is_available()
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LARGE = {torch.float16: "nchw", torch.bfloat16: "nhwc", torch.float64: "nchw"}


def _blocks() -> Iterator[Block]:
    """Those of the modules here.

    Squeeze-and-excitation is the first: what many blocks share is checked by its problems.
    """
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    for name in sorted(names, key=lambda name: (name != "se", name)):
        if hasattr(module := importlib.import_module(f"tests.cases.{name}"), "BLOCK"):
            yield module.BLOCK


#: A new block needs no line here: it has a file beside this one.
BLOCKS: dict[str, Block] = {block.name: block for block in _blocks()}


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
    def without_backend(self) -> Case:
        return replace(self, backend="")

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
                if config.is_huge and dtype != torch.float32:
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


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    import pytest

    marks = [pytest.mark.gpu] * (case.device == "cuda")
    if not marks and case.config.is_large and case.dtype != torch.float32:
        marks.append(pytest.mark.slow)
    return marks


def table() -> list[Any]:
    """All cases as pytest parameters; those that need a GPU, or long, are marked.

    The backends of a case follow one another: what judges them is computed once.
    """
    import pytest

    found: dict[str, list[Case]] = {}
    for block in BLOCKS.values():
        for backend in backends.names():
            for case in _cases_of(block, backend):
                found.setdefault(case.without_backend.id, []).append(case)
    return [
        pytest.param(case, id=case.id, marks=_marks(case))
        for alike in found.values()
        for case in alike
    ]


def fused_backends() -> list[Any]:
    """The backends with operators, as pytest parameters."""
    import pytest

    return [
        pytest.param(name, marks=[pytest.mark.gpu] * (device_of(name) == "cuda"))
        for name in backends.names()
        if backends.get(name).namespace is not None
    ]


def require(backend: str) -> None:
    """Skip the test, with the reason, where ``backend`` cannot run."""
    reason = unavailable(backend)
    if reason is not None:
        import pytest

        pytest.skip(f"backend {backend}: {reason}")
    backends.select(backend, device_of(backend))  # its operators are there from then on


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
    is_map: Callable[[str], bool]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, dict[str, Any], Tensor]:
        def leaf(name: str, t: Tensor) -> Tensor:
            t = t.to(device, dtype)
            return (LAYOUTS[self.layout](t) if self.is_map(name) else t).detach().requires_grad_()

        x = leaf("x", self.x)
        parameters = {k: None if p is None else leaf(k, p) for k, p in self.parameters.items()}
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

    c, block = case.config.shape[1], BLOCKS[case.block]
    parameters = block.parameters(case.config, random)
    x = random(*case.config.shape) + random(1, c, 1, 1) + case.config.options.get("offset", 0.0)
    if case.config.options.get("zeros", False):  # a plane, and all samples but the first
        x[0, -1] = x[1:] = 0.0
    parameters = {k: None if p is None else rounded(p) for k, p in parameters.items()}
    # An expanded map has the values of its layout.
    for name, p in parameters.items():
        if p is not None and block.is_map(name):
            parameters[name] = LAYOUTS[case.layout](p)
    return Inputs(
        LAYOUTS[case.layout](rounded(x)),
        parameters,
        rounded(random(*case.config.shape)),
        random(*block.gate_shape(case.config)),
        case.dtype,
        case.layout,
        case.grad_layout,
        block.is_map,
    )
