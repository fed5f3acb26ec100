"""torch.compile takes every module and function as one graph, whatever asks for gradients."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

import chattn_cuda
from chattn_cuda import backends
from tests import exported
from tests.exported import assert_same, maps, pair

FUSED = backends.select("auto", "cpu")
MODES = ("training", "frozen input", "frozen", "no_grad", "inference_mode")


def run(network: Any, call: Any, mode: str) -> dict[str, Tensor]:
    """The output, and the gradients that the mode asks for."""
    network.requires_grad_(mode != "frozen")
    x = maps(mode == "training")
    without = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with without.get(mode, contextlib.nullcontext)():
        y = call(x)
    leaves = dict(network.named_parameters(), **({"x": x} if x.requires_grad else {}))
    assert y.requires_grad == (mode in MODES[:2] and bool(leaves))
    found = {"y": y.detach().clone()}
    if y.requires_grad:
        found |= zip(leaves, torch.autograd.grad(y.sin().sum(), list(leaves.values())), strict=True)
    return found


@pytest.mark.parametrize("name", exported.EVERY)
def test_one_graph(name: str) -> None:
    """Without a layer in front, so that x may need no gradient."""
    fast, plain = (network.block for network in pair(name, FUSED))
    for mode in MODES:
        # What fails here fails where the graph is captured; gradients need the rest.
        backend = "aot_eager" if mode in MODES[:2] else "eager"
        torch._dynamo.reset()
        compiled = torch.compile(fast, fullgraph=True, backend=backend)
        assert_same(run(fast, compiled, mode), run(plain, plain, mode))


def test_one_graph_of_any_size_in_inference() -> None:
    """The batch norms of a selective kernel's branches are part of its passes."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    module = timm.layers.SelectiveKernel(8).eval()
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        expected = module(x)
        chattn_cuda.accelerate(module)
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
        torch.testing.assert_close(compiled(x), expected)
