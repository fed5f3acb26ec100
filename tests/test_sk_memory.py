"""What a selective kernel's forward allocates, inside of its operators too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import backends, functional
from chattn_cuda.cli.measure import peak_memory
from chattn_cuda.modules import SelectiveKernelAttn
from tests import cases, host_backend

N, C, D = 16, 64, 2
PLANES = 4 * N * C  # bytes of an accumulator per plane

on_backends = pytest.mark.parametrize("backend", ["cpu", host_backend.NAME])
on_counts = pytest.mark.parametrize("m", [1, 2, 3, 4])


def size(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def branches(m: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(N, C, 16, 16).to(dtype) for _ in range(m)]


def require_few(call: Callable[[], Any], m: int) -> None:
    """Its results and M + 2 accumulators per plane: the mean, the logits, what is hidden."""
    call()  # what is made once
    most, result = peak_memory(call)
    outputs = size(*(result if isinstance(result, tuple) else (result,)))
    assert outputs <= most <= outputs + (m + 2) * PLANES


@on_backends
@on_counts
@pytest.mark.parametrize("frozen", ["", "branches", "weights", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("return_gate", [False, True], ids=["", "gate"])
def test_function(m: int, frozen: str, dtype: torch.dtype, return_gate: bool, backend: str) -> None:
    cases.require(backend)
    u = [t.requires_grad_(frozen not in ("branches", "all")) for t in branches(m, dtype)]
    shapes = ((1, C), (1,), (m * C, 1), (m * C,))  # small: a 16-bit weight is copied
    weights = [torch.randn(s).to(dtype) for s in shapes]
    for w in weights:
        w.requires_grad_(frozen not in ("weights", "all"))

    def call() -> Any:
        return functional.selective_kernel(u, *weights, return_gate=return_gate, backend=backend)

    require_few(call, m)
    with torch.no_grad():
        require_few(call, m)


@on_backends
@on_counts
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None], ids=["norm", ""])
def test_module(m: int, training: bool, norm: Any, backend: str) -> None:
    cases.require(backend)
    attn = SelectiveKernelAttn(C, m, D, norm_layer=norm, backend=backend).train(training)
    u = [t.requires_grad_() for t in branches(m)]
    require_few(lambda: attn.weigh(u), m)
    with torch.no_grad():
        require_few(lambda: attn.weigh(u), m)


def test_the_measure_sees_maps() -> None:
    u = branches(2)

    def eager() -> Tensor:
        stacked = torch.stack(u, 1)
        return (stacked * stacked.sum(1).mean((2, 3))[:, None, :, None, None]).sum(1)

    most, y = peak_memory(eager)
    assert most >= 5 * size(y)  # the stacked map, the product, the sum


@pytest.mark.parametrize("backend", ["cpu", host_backend.NAME])
def test_the_measure_sees_what_operators_allocate(backend: str) -> None:
    cases.require(backend)
    namespace = getattr(torch.ops, str(backends.get(backend).namespace))
    misaligned = torch.randn(N * C * 256 + 1)[1:].view(N, C, 16, 16)
    most, _ = peak_memory(lambda: namespace.sk_squeeze([misaligned]))
    assert most >= PLANES + (backend != "cpu") * size(misaligned)  # copied for a GPU
