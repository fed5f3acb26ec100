"""Exported programs: they can be trained, unflattened, and read without this package."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from chattn_cuda import backends
from tests import exported
from tests.exported import assert_same, maps, own_operators, pair, step

FUSED = backends.select("auto", "cpu")  # this backend's operators stay in a program that names it
no_warnings = pytest.mark.filterwarnings(
    "error:.*autograd kernel", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


def export(network: nn.Module, strict: bool = False) -> Any:
    torch._dynamo.reset()
    return torch.export.export(network, (maps(),), strict=strict)


@no_warnings
@pytest.mark.parametrize("backend", ["auto", FUSED])
@pytest.mark.parametrize("name", exported.EVERY)
def test_a_program_can_be_trained(name: str, backend: str) -> None:
    fast, plain = pair(name, backend)
    program = export(fast)
    kept = backend != "reference" and backend != "auto" and name not in exported.PLAIN
    with_batch_norm = name == "SqueezeExcite with a norm"  # of the batch's statistics
    assert bool(own_operators(program.graph_module)) == (kept and not with_batch_norm)
    module = program.module()
    assert_same(step(module, module.named_parameters()), step(plain, plain.named_parameters()))


@no_warnings
@pytest.mark.parametrize("backend", ["auto", FUSED])
@pytest.mark.parametrize("name", exported.BLOCKS)
def test_strictly_exported_and_unflattened(name: str, backend: str) -> None:
    fast, plain = pair(name, backend)
    module = torch.export.unflatten(export(fast, strict=True))
    assert_same(step(module, module.named_parameters()), step(plain, plain.named_parameters()))


@no_warnings
@pytest.mark.parametrize("name", exported.BLOCKS)
def test_second_derivatives_of_a_program(name: str) -> None:
    def penalty(network: Any) -> Any:
        x = maps(True)
        (g,) = torch.autograd.grad(network(x).sin().sum(), x, create_graph=True)
        return dict(enumerate(torch.autograd.grad(g.square().sum(), network.parameters())))

    fast, plain = pair(name, FUSED)
    plain.eval()
    assert_same(penalty(export(fast.eval()).module()), penalty(plain), 1e-8)


def test_nothing_warns() -> None:
    fast, _ = pair("SqueezeExcite", FUSED)
    module = export(fast).module()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(maps()).sum().backward()
