"""The usual network of a selective kernel, as numbers: one node with derivatives of its own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from chattn_cuda import SelectiveKernel, SplitAttn, accelerate, functional, ops
from tests import cases
from tests.plain_sk import (
    F64,
    NORMS,
    Plain,
    is_one_node,
    loss_of,
    maps,
    require_like_plain,
    same,
)

TimmSelectiveKernel = pytest.importorskip("timm.layers.selective_kernel").SelectiveKernel
on_fused = pytest.mark.parametrize("backend", cases.fused_backends())
on_norms = pytest.mark.parametrize("norm", NORMS)
on_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def _available(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames:
        cases.require(request.getfixturevalue("backend"))


# ---- values, gradients, statistics
@on_fused
@on_norms
@on_modes
@pytest.mark.parametrize("act", [nn.ReLU, nn.Identity])
@pytest.mark.parametrize("bias", [(True, True), (False, False), (True, False)], ids=str)
def test_like_plain(
    norm: str, training: bool, act: Any, bias: tuple[bool, bool], backend: str
) -> None:
    require_like_plain(Plain(2, NORMS[norm], act, bias).train(training), backend, maps())


@on_fused
@on_modes
@pytest.mark.parametrize("m", [1, 3, 4])
@pytest.mark.parametrize("used", ["y", "gate", "both"])
def test_other_counts_and_losses(m: int, used: str, training: bool, backend: str) -> None:
    plain = Plain(m, NORMS["plain"]).train(training)
    require_like_plain(plain, backend, maps(m), used)


def test_statistics_are_updated_once_a_call() -> None:
    """By every way through the block: recorded, not recorded, and with nothing to record."""
    for recorded, frozen in itertools.product((True, False), (True, False)):
        plain = Plain(2, NORMS["plain"]).requires_grad_(not frozen)
        ours = copy.deepcopy(plain)
        u = [t.detach().requires_grad_(not frozen) for t in maps()]
        with torch.set_grad_enabled(recorded):
            for calls in (1, 2):
                ours.fused(*u, backend="cpu"), plain(*u)
                assert int(ours.bn.num_batches_tracked) == calls
                same(dict(ours.named_buffers()), dict(plain.named_buffers()))
        ours.eval().fused(*u, backend="cpu")
        same(dict(ours.named_buffers()), dict(plain.named_buffers()))


@on_fused
def test_statistics_that_are_parts_of_one_array(backend: str) -> None:
    """As of buffers that were flattened: they begin anywhere, and are changed where they lie."""
    plain = Plain(2, NORMS["plain"])
    bn, d = plain.bn, plain.bn.num_features
    flat = torch.cat([torch.zeros(d + 1), torch.ones(d)]).to(bn.weight.dtype)
    bn.running_mean, bn.running_var = flat[1 : d + 1], flat[d + 1 :]
    require_like_plain(plain, backend, maps())


def test_statistics_set_to_none_and_turned_off() -> None:
    """As nn.BatchNorm2d decides: by the buffers in eval mode, and by the attribute in training."""
    for training in (True, False):
        for off in (True, False):
            plain = Plain(2, NORMS["plain"]).train(training)
            if off:
                plain.bn.track_running_stats = False
            else:
                plain.bn.running_mean = plain.bn.running_var = None
            require_like_plain(plain, "cpu", maps())


NAMES = ["fc_reduce.weight", "fc_reduce.bias", "bn.weight", "bn.bias", "fc_select.weight",
         "fc_select.bias", "u0", "u1"]  # fmt: skip
SUBSETS = [*((name,) for name in NAMES), ("u0", "u1"), tuple(NAMES[:6]), ("bn.bias", "u1"),
           *(tuple(n for n in NAMES if n != name) for name in NAMES)]  # fmt: skip


@on_fused
@on_modes
@pytest.mark.parametrize("wanted", SUBSETS, ids=lambda names: "+".join(names)[:60])
def test_frozen_tensors(wanted: tuple[str, ...], training: bool, backend: str) -> None:
    plain, u = Plain(2, NORMS["plain"]).train(training), maps()
    named = {**dict(plain.named_parameters()), "u0": u[0], "u1": u[1]}
    assert set(named) == set(NAMES)
    for name, t in named.items():
        t.requires_grad_(name in wanted)
    require_like_plain(plain, backend, u)


# ---- derivatives of derivatives
def network_of(
    tensors: Sequence[Tensor | None],
    norm: str | None,
    relu: bool,
    m: int = 2,
    cardinality: int = 1,
) -> ops.Network:
    w1, b1, weight, bias, w2, b2 = tensors
    assert w1 is not None and w2 is not None
    hidden = None
    if norm is not None:
        running = (None, None)
        if norm == "eval":
            running = (torch.linspace(-0.4, 0.5, 4).to(w1), torch.linspace(0.6, 1.5, 4).to(w1))
        hidden = ops.HiddenNorm(weight, bias, *running, None, norm == "train", 0.1, 1e-3)
    return ops.Network(m, w1, b1, w2, b2, hidden, relu, cardinality)


@pytest.mark.parametrize("norm", [None, "train", "eval"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "identity"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("cardinality", [1, 2], ids=["", "groups"])
def test_gradcheck_and_gradgradcheck(
    cardinality: int, norm: str | None, relu: bool, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(2)
    c = 2 * cardinality
    weights = [(4, 2), (4,), (4,), (4,), (2 * c, 4 // cardinality), (2 * c,)]
    shapes = [*weights, *[(3, c, 2, 2)] * 2]
    tensors = [torch.randn(s, generator=generator, dtype=F64).requires_grad_() for s in shapes]
    missing = ({1, 5} if not bias else set()) | ({2, 3} if norm is None or not bias else set())
    given = [t for i, t in enumerate(tensors) if i not in missing]

    def call(*given: Tensor) -> tuple[Tensor, Tensor]:
        values = iter(given)
        args = [None if i in missing else next(values) for i in range(len(tensors))]
        network = network_of(args[:6], norm, relu, 2, cardinality)
        y, z = functional.run_selective_kernel("cpu", args[6:], network)
        assert is_one_node(y)
        return y, torch.softmax(z, 1)

    assert gradcheck(call, given)
    assert gradgradcheck(call, given)


@on_fused
@pytest.mark.parametrize("norm", ["none", "plain"])
@on_modes
def test_second_derivatives_like_plain(norm: str, training: bool, backend: str) -> None:
    """A penalty on the gradient; on that of the penalty, too, where torch's batch norm has one."""
    plain = Plain(3, NORMS[norm], nn.Identity).train(training)
    ours = copy.deepcopy(plain).to(cases.device_of(backend))

    def penalties(call: Callable[..., Any], module: Plain, device: str) -> list[Tensor]:
        u = maps(3, device=device)
        value = loss_of(*call(*u))
        for _ in range(1 if norm != "none" and training else 2):
            grads = torch.autograd.grad(value, [*u, *module.parameters()], create_graph=True)
            value = sum(g.square().sum() for g in grads)
        return list(torch.autograd.grad(value, [*u, *module.parameters()]))

    def fused(*u: Tensor) -> tuple[Tensor, Tensor]:
        return ours.fused(*u, backend=backend)

    actual = penalties(fused, ours, cases.device_of(backend))
    for one, two in zip(actual, penalties(plain, plain, "cpu"), strict=True):
        torch.testing.assert_close(one.cpu(), two, rtol=1e-8, atol=1e-10)


@on_fused
@on_modes
def test_second_use_of_the_graph(training: bool, backend: str) -> None:
    """retain_graph: other losses between do not change what a loss gives."""
    module = Plain(2, NORMS["plain"]).to(cases.device_of(backend)).train(training)
    u = maps(device=cases.device_of(backend))
    leaves = [*u, *module.parameters()]
    y, gate = module.fused(*u, backend=backend)
    assert is_one_node(y)

    def grads(used: str, keep: bool = True) -> tuple[Any, ...]:
        loss = loss_of(y, gate, used)
        return torch.autograd.grad(loss, leaves, retain_graph=keep, allow_unused=True)

    first, of_gate = grads("both"), grads("gate")
    of_y = grads("y")
    for one, two in zip(of_gate, grads("gate"), strict=True):
        assert torch.equal(one, two)
    for total, a, b in zip(first, of_gate, of_y, strict=True):
        same(total, a + b)
    for one, two in zip(first, grads("both", keep=False), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(RuntimeError, match="second time"):
        grads("both")


# ---- what happens between forward and backward
@pytest.mark.parametrize(
    "name", ["bn.running_mean", "bn.running_var", "bn.weight", "fc_reduce.weight",
             "fc_select.weight", "u0"],
)  # fmt: skip
@on_modes
def test_what_the_backward_reads_may_not_change(name: str, training: bool) -> None:
    module, u = Plain(2, NORMS["plain"]).train(training), maps()
    y, _ = module.fused(*u, backend="cpu")
    assert is_one_node(y)
    expected = torch.autograd.grad(y.sin().sum(), u, retain_graph=True)
    tensors = {**module.state_dict(keep_vars=True), "u0": u[0]}
    with torch.no_grad():
        tensors[name].mul_(2)
    if "running" in name:  # not what normalised, or copied for that
        assert all(map(torch.equal, expected, torch.autograd.grad(y.sin().sum(), u)))
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sin().sum(), u)


@on_fused
@pytest.mark.parametrize("kind", ["SelectiveKernel", "timm's", "SplitAttn"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_pass_in_training_between_forward_and_backward(
    kind: str, create_graph: bool, backend: str
) -> None:
    """It changes the running statistics in place; the gradient is that of the call."""
    device = cases.device_of(backend)
    module: Any = (
        {
            "SelectiveKernel": lambda: SelectiveKernel(8, 8, backend=backend),
            "timm's": lambda: TimmSelectiveKernel(8, 8),
            "SplitAttn": lambda: SplitAttn(8, backend=backend),
        }[kind]()
        .to(device)
        .eval()
    )
    if not hasattr(module, "backend"):
        assert accelerate(module, backend, fuse="block").changed
    x = torch.randn(2, 8, 4, 5, device=device, requires_grad=True)

    def gradients(y: Tensor) -> Any:
        leaves = [x, *module.parameters()]
        return torch.autograd.grad(y.sin().sum(), leaves, create_graph=create_graph)

    expected = [g.detach() for g in gradients(module(x))]
    y = module(x)
    getattr(module, "attn", module).train()  # the norms in front of it keep theirs
    with torch.no_grad():
        module(3 * torch.randn(4, 8, 4, 5, device=device) + 1)
    for one, two in zip(gradients(y), expected, strict=True):
        torch.testing.assert_close(one, two)


@on_fused
@on_modes
def test_biases_may_change_before_the_first_backward(training: bool, backend: str) -> None:
    """As in PyTorch, where no layer's backward reads them."""
    device = cases.device_of(backend)
    module, u = Plain(2, NORMS["plain"]).train(training).to(device), maps(device=device)
    y, _ = module.fused(*u, backend=backend)
    leaves = [*u, *module.parameters()]
    expected = torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True)
    with torch.no_grad():
        for bias in (module.fc_reduce.bias, module.bn.bias, module.fc_select.bias):
            bias.mul_(2)
    assert all(
        map(torch.equal, expected, torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True))
    )
    with pytest.raises(RuntimeError, match="a bias was changed in place"):
        torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)


@on_fused
@pytest.mark.parametrize("norm", [None, "eval"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_sample_that_is_not_finite_stays_alone(
    value: float, norm: str | None, backend: str
) -> None:
    """Where no statistics of the batch connect it to the others."""
    plain = Plain(2, NORMS["plain"] if norm else None).eval()
    u = maps()
    with torch.no_grad():
        u[0][1, 0, 0, 0] = value
    ours = copy.deepcopy(plain).to(cases.device_of(backend))
    v = [t.detach().to(cases.device_of(backend)).requires_grad_() for t in u]
    grads = [
        torch.autograd.grad(y.square().sum(), leaves)
        for y, leaves in ((plain(*u)[0], u), (ours.fused(*v, backend=backend)[0], v))
    ]
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(two.cpu(), one, equal_nan=True)
        assert one[0].isfinite().all() and one[2].isfinite().all()


def test_two_calls_before_a_backward_in_training() -> None:
    """The second one updates the statistics."""
    plain = Plain(2, NORMS["plain"])
    ours = copy.deepcopy(plain)
    u = maps()
    outputs = [[call(*u)[0], call(*(2 * t for t in u))[0]] for call in (
        plain, lambda *u: ours.fused(*u, backend="cpu")
    )]  # fmt: skip
    grads = [torch.autograd.grad(a.sin().sum() + b.cos().sum(), u) for a, b in outputs]
    same(grads[1], grads[0])
