"""Networks in several variants: made, compiled, compared with each other, and measured in turn.

Shared by gpu_models.py and gpu_tails.py on a GPU and by bench_models.py on a CPU.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
import torch._functorch.config
from gpu_results import Times, emit, emit_row, left
from torch import Tensor, nn

EAGER, OURS, COMPILED, BOTH = "eager", "accelerated", "compiled", "both"
VARIANTS = (EAGER, OURS, COMPILED, BOTH)
COMPILER = os.environ.get("GPU_CHECK_COMPILER", "inductor")
# A variant's result may differ so much from eager PyTorch's, in bfloat16 through a whole network:
# enough to notice nonsense. The tests know the numbers better.
DIFFERENCE = 0.1


def device() -> str:
    """Returns "cuda", or "cpu" in a rehearsal."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def network(name: str, training: bool, layout: torch.memory_format, **options: Any) -> nn.Module:
    """One of timm's networks with random weights, on the device."""
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **options)
    for module in model.modules():
        # timm's ResNets begin with branches that are zero, on which nothing shows.
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)
    return model.to(device()).to(memory_format=layout).train(training)


# ---- compiling ahead ----------------------------------------------------------------------------
class _Compiled(Exception):
    """There is code; it was not run."""


class Ahead:
    """A module compiled by torch.compile for one call, forward and backward, without running it.

    Attributes:
        module: What `torch.compile` returned.
        graphs: How many graphs it has; known once it has run.
    """

    def __init__(self, module: nn.Module, call: Callable[[Any], object]) -> None:
        self.graphs, self._held = 0, True
        self.module = torch.compile(module, backend=self._backend, dynamic=False)
        # Otherwise the backward is compiled when it first runs.
        with (
            torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
            contextlib.suppress(_Compiled),
        ):
            call(self.module)
        self._held = False

    def _backend(self, graph: Any, examples: Any) -> Callable[..., Any]:
        self.graphs += 1
        compiled = torch._dynamo.lookup_backend(COMPILER)(graph, examples)

        def run(*arguments: Any) -> Any:
            if self._held:
                raise _Compiled
            return compiled(*arguments)

        return run


# ---- what is measured ---------------------------------------------------------------------------
@dataclass
class Subject:
    """A network, and one way to call it.

    Attributes:
        table: Of the row.
        row: Its name.
        unit: "ms" or "us".
        module: The network as it is in eager PyTorch, in train or eval mode.
        call: Runs one and returns tensors to compare.
        inputs: Bytes of its inputs, which count as its memory.
        rounds: At most so many are measured.
        repeat: Calls in a sample.
        backend: For `accelerate`: a named one insists on the operators under torch.compile.
        fuse: For `accelerate`.
    """

    table: str
    row: str
    unit: str
    module: nn.Module
    call: Callable[[Any], Sequence[Tensor]]
    inputs: int
    rounds: int
    repeat: int
    backend: str = "auto"
    fuse: str = "tail"

    def variant(self, name: str) -> Any:
        """The network in that variant."""
        module = copy.deepcopy(self.module)
        if name in (OURS, BOTH):
            import chattn_cuda

            chattn_cuda.accelerate(module, self.backend, self.fuse)
        if name in (COMPILED, BOTH):
            return Ahead(module, self.call).module
        return module


def make_ready(subject: Subject, names: Sequence[str]) -> dict[str, Any]:
    """The network in each of the variants; one that cannot be made is a problem, no end."""
    made = {}
    for name in names:
        start = time.monotonic()
        try:
            made[name] = subject.variant(name)
        except Exception as error:
            complain(subject, name, error)
        print(f"{subject.row}, {name}: ready after {time.monotonic() - start:.1f} s", flush=True)
    return made


def complain(subject: Subject, name: str, error: object) -> None:
    """Add a problem."""
    text = " ".join(str(error).split())[:200]
    kind = "" if isinstance(error, str) else f"{type(error).__name__}: "
    emit("problem", step=subject.table, text=f"{subject.row}, {name}: {kind}{text}")


def measure(subject: Subject, variants: dict[str, Any], seconds: float) -> None:
    """Compare the variants with the first one, then time them in turn, and add the row."""
    from chattn_cuda.cli.measure import time_calls

    calls: dict[str, Callable[[], object]] = {}
    memory: dict[str, float | None] = {}
    differences: dict[str, float] = {}
    expected: list[Tensor] | None = None
    for name, module in variants.items():
        try:
            subject.call(module)  # loads kernels, tries configurations
            memory[name], got = _peak(subject, module)
        except Exception as error:
            complain(subject, name, error)
            continue
        expected = expected or got
        differences[name] = max(map(_difference, got, expected))
        if not differences[name] <= DIFFERENCE:
            complain(subject, name, f"differs from {EAGER} by {differences[name]:.1e}")
        calls[name] = functools.partial(subject.call, module)
    del expected
    samples = time_calls(
        calls, device(), seconds=max(0.0, min(seconds, left() - 1)), min_rounds=3,
        max_rounds=subject.rounds, repeat=subject.repeat, hide_launches=False,
    )  # fmt: skip
    scale = {"ms": 1.0, "us": 1e3}[subject.unit]
    times = {
        name: Times.of(values, scale, gib=memory[name], error=differences[name])
        for name, values in samples.items()
    }
    emit_row(subject.table, subject.row, subject.unit, times)


def _difference(got: Tensor, expected: Tensor) -> float:
    """Relative, by L2 norm."""
    a, b = got.detach().double(), expected.detach().double()
    return float((a - b).norm() / b.norm().clamp_min(torch.finfo(torch.float64).tiny))


def _peak(subject: Subject, module: nn.Module) -> tuple[float | None, list[Tensor]]:
    """GiB of one call with its weights and inputs, and what it returned."""
    if device() != "cuda":
        return None, [t.detach().clone() for t in subject.call(module)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = subject.call(module)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before + subject.inputs
    weights = [*module.parameters(), *module.buffers()]
    peak += sum(t.numel() * t.element_size() for t in weights)
    return peak / 2**30, [t.detach().clone() for t in results]
