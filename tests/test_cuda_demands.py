"""What torch's operators ask on CUDA and not on a CPU, asked of every call of them here.

The checks are from the sources of torch's CUDA kernels; docs/testing.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from chattn_cuda import activations, ops
from tests import cases, host_backend
from tests.cases import BLOCKS, Case
from tests.plain_sk import F64, NORMS, Plain, maps, same
from tests.results import results

DOCUMENT = Path(__file__).parent.parent / "docs" / "testing.md"
# They have no kernel, or one that asks nothing of CUDA.
VIEWS = {
    *("_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice"),
    *("split", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view"),
}


def _batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Any, mean: Any, var: Any, save_mean: Any, save_invstd: Any,
    train: bool, eps: float, mask: list[bool],
) -> str | None:  # fmt: skip
    if save_mean is None or save_invstd is None:
        return "save_mean and save_invstd must be given, also in eval mode"
    if save_mean.numel() == 0 and (train or mean is None or var is None):
        return "empty statistics of the batch without running ones"
    if weight is None and (mask[1] or mask[2]):
        return "without a weight its gradient and the bias's are empty"
    return None


def _index(x: Tensor, indices: list[Tensor | None], *args: Any) -> str | None:
    for dim, i in enumerate(indices):
        if (
            i is not None
            and i.numel() > 0
            and not -x.shape[dim] <= i.min() <= i.max() < x.shape[dim]
        ):
            return "an index out of bounds ends the process's use of the GPU"
    return None


def _waits(*args: Any) -> str | None:
    return "waits for the GPU, which capturing a graph forbids"


CHECKS: dict[str, Callable[..., str | None]] = {
    "native_batch_norm_backward": _batch_norm_backward,
    "index": _index,
    "index_put": _index,
    "_local_scalar_dense": _waits,
}

SIXTH = float(torch.tensor(1 / 6, dtype=torch.float32))
# What CUDA computes for float64, where that is something else.
INEXACT: dict[str, Callable[..., Tensor]] = {
    "hardswish": lambda z: z * (z + 3).clamp(0, 6) * SIXTH,
    "hardsigmoid": lambda z: (z + 3).clamp(0, 6) * SIXTH,
    "hardsigmoid_backward": lambda g, z: torch.where((z > -3) & (z < 3), g * SIXTH, 0),
}


class Demands(TorchDispatchMode):
    """Raises where CUDA would refuse a call, and is as inexact as CUDA.

    Attributes:
        called: The names of the operators that were called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.called.add(name)
        if name in CHECKS and (reason := CHECKS[name](*args)) is not None:
            raise AssertionError(f"{name} on CUDA: {reason}")
        if name in INEXACT and args[0].dtype == F64:
            return INEXACT[name](*args)
        return func(*args, **(kwargs or {}))


# The CUDA kernels on the CPU leave to torch what they leave to it on a GPU.
on_backends = pytest.mark.parametrize("backend", [host_backend.NAME, "reference"])


def run(case: Case) -> set[str]:
    """Which operators of torch a forward and a backward call; their results are the CPU's."""
    inputs, block = cases.make_inputs(case), BLOCKS[case.block]

    def call() -> dict[str, Tensor]:
        x, parameters, dy = inputs.to(case.dtype, case.device)
        outputs = block.run(x, parameters, case.config.options, case.backend)
        return results(outputs, x, parameters, dy, inputs.dgate)

    with Demands() as demands:
        actual = call()
    if case.dtype == F64:
        same(actual, call())
    return demands.called


@on_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks(block: str, dtype: torch.dtype, backend: str) -> None:
    cases.require(backend)
    called: set[str] = set()
    for config in BLOCKS[block].small + BLOCKS[block].options:
        called |= run(Case(block, backend, config, dtype, "nchw"))
    assert called


def gradients(network: ops.Network, pooled: Tensor) -> None:
    """Those that the network has written out, against autograd's of its formula."""
    tensors = [t for t in network.tensors if t is not None]
    z = network.formula(pooled, *network.tensors)
    expected = torch.autograd.grad(z.sin().sum(), [pooled, *tensors])
    with torch.no_grad(), Demands():
        actual, saved = network.evaluate(pooled)
        needs = tuple(t is not None for t in network.tensors)
        dpooled, grads = network.gradients(z.cos(), pooled, network.tensors, saved, needs)
    same(actual, z.detach())
    same([dpooled, *(g for g in grads if g is not None)], list(expected))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Identity])
def test_networks_of_selective_kernels(norm: str, training: bool, act: Any) -> None:
    u = maps()
    network = Plain(2, NORMS[norm], act).train(training).network(u[0])
    assert isinstance(network, ops.Network)
    gradients(network, sum(t.detach().mean((2, 3)) for t in u).requires_grad_())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_norm_with_a_bias_alone(training: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pooled, w1, bias, w2 = (
        torch.randn(s, generator=generator, dtype=F64).requires_grad_()
        for s in ((3, 6), (5, 6), (5,), (12, 5))
    )
    running = (None, None) if training else (torch.zeros(5, dtype=F64), torch.ones(5, dtype=F64))
    norm = ops.HiddenNorm(None, bias, *running, None, training, 0.1, 1e-3)
    gradients(ops.Network(2, w1, None, w2, None, norm, True), pooled)


@on_backends
@pytest.mark.parametrize("block", [b for b in BLOCKS if BLOCKS[b].function is not None])
def test_derivatives_of_derivatives(block: str, backend: str) -> None:
    cases.require(backend)
    spec = BLOCKS[block]
    generator = torch.Generator().manual_seed(0)
    for variant in spec.variants.values():
        shapes = [(2, 3, 2, 3), *(variant.weights or spec.weights)(3)]
        tensors = [torch.randn(s, generator=generator, dtype=F64).requires_grad_() for s in shapes]
        with Demands():
            y = spec.function(*tensors, backend=backend, **variant.keywords)  # type: ignore[misc]
            y = y[0] if isinstance(y, tuple) else y
            grads = torch.autograd.grad(y.sin().sum(), tensors, create_graph=True)
            torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activations(name: str) -> None:
    activation = activations.ACTIVATIONS[name]

    def call() -> tuple[Tensor, Tensor]:
        z = torch.linspace(-4, 4, 33, dtype=F64).requires_grad_()
        y = activation.function(z, activation.param)
        return y.detach(), torch.autograd.grad(y.sin().sum(), z)[0]

    with Demands():
        actual = call()
    same(actual, call())


def test_what_is_called_is_documented() -> None:
    """A new operator of torch in the package: read its CUDA kernel, and add it to the document."""
    called: set[str] = set()
    for block in BLOCKS.values():
        for config in block.small + block.options:
            called |= run(Case(block.name, "reference", config, torch.float32, "nchw"))
    text = DOCUMENT.read_text()
    assert [name for name in sorted(called - VIEWS) if f"`{name}`" not in text] == []


def test_float32_is_not_tf32() -> None:
    """By its default a convolution on a GPU keeps ten bits of what it multiplies."""
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
