"""What the nodes of the graph keep, as tools meet it that walk, pack or swap saved tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import SplitAttn, SqueezeExcite, backends
from tests import exported
from tests.exported import assert_same, maps, pair, step

FUSED = backends.select("auto", "cpu")
NAMES = [name for name in exported.EVERY if name not in exported.PLAIN]


def saved_tensors(y: Tensor) -> list[Any]:
    """Of all nodes, as torchviz and its kin find them."""
    seen, todo, found = set(), [y.grad_fn], []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        found += getattr(node, "saved_tensors", ())
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_saved_tensors_are_tensors(name: str, training: bool) -> None:
    fast, _ = pair(name, FUSED)
    found = saved_tensors(fast.train(training)(maps()))
    assert found or name not in exported.BLOCKS
    assert all(isinstance(t, Tensor) for t in found)


@pytest.mark.parametrize("bias", [True, False])
def test_saved_tensors_without_biases(bias: bool) -> None:
    for block in (SqueezeExcite(16, bias=bias), SplitAttn(16)):
        found = saved_tensors(block(torch.randn(2, 16, 4, 4)))
        assert found and all(isinstance(t, Tensor) for t in found)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_allow_mutation_on_saved_tensors(name: str, training: bool) -> None:
    network, _ = pair(name, FUSED)
    expected = step(network.train(training), network.named_parameters())
    x = maps(True)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        y = network(x)
        with torch.no_grad():
            x.mul_(2)
            for p in network.parameters():
                p.mul_(3)
        y.sin().sum().backward()
    grads = {k: p.grad for k, p in network.named_parameters()}
    assert_same({"y": y.detach(), "x": x.grad, **grads}, expected)


def biases_of(network: nn.Module) -> dict[str, Tensor]:
    """Those of layers and norms, and among a function's weights."""
    every = {k: p for k, p in network.named_parameters() if k.rpartition(".")[2].startswith("b")}
    del every["stem.bias"]
    return every


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_biases_may_change_before_a_second_backward(name: str, training: bool) -> None:
    """As in eager PyTorch: no first derivative reads them."""
    found = []
    for network in pair(name, FUSED):
        network.train(training)
        x = maps(True)
        y = network(x).sin().sum()
        y.backward(retain_graph=True)
        with torch.no_grad():
            for p in biases_of(network).values():
                p.add_(1)
        x.grad = None
        network.zero_grad()
        y.backward()
        grads = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
        found.append({"x": x.grad, **grads})
    assert_same(*found)


def test_second_derivatives_need_the_biases_and_say_so() -> None:
    for name in ("squeeze_excite", "SelectiveKernel"):
        fast, _ = pair(name, FUSED)
        y = fast(maps(True)).sin().sum()
        with torch.no_grad():
            for p in biases_of(fast).values():
                p.add_(1)
        with pytest.raises(RuntimeError, match="a bias was changed in place"):
            torch.autograd.grad(y, list(fast.parameters()), create_graph=True)
