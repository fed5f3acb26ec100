"""The selective kernel with its network as one pair of operators, on the native backends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from chattn_cuda import backends
from chattn_cuda.ops.sk.block import is_whole
from tests import cases, host_backend
from tests.test_selective_kernel import branches_of

D = 5
NORMS = ("none", "fixed", "of batch", "of batch alone")


@pytest.fixture(params=["cpu", host_backend.NAME])
def ops(request: pytest.FixtureRequest) -> Any:
    """The operators of a native backend."""
    cases.require(request.param)
    return getattr(torch.ops, str(backends.get(request.param).namespace))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_native_backends_have_the_pair() -> None:
    """Also those of a GPU, which shares the CPU's namespace."""
    for backend in ("cpu", host_backend.NAME):
        cases.require(backend)
        assert is_whole(str(backends.get(backend).namespace), 1)
    assert backends.get("cuda").namespace == backends.get("cpu").namespace


def forward_arguments(u: list[Tensor], norm: str, **changed: Any) -> dict[str, Any]:
    c, m = u[0].shape[1], len(u)
    running = [numbers(D), numbers(D).exp(), torch.tensor(3)]
    given = {
        "branches": u,
        "w_reduce": numbers(D, c, 1, 1),
        "b_reduce": numbers(D),
        "weight": numbers(D) if norm != "none" else None,
        "bias": numbers(D) if norm != "none" else None,
        "w_select": numbers(m * c, D, 1, 1),
        "b_select": numbers(m * c),
        "mean": numbers(D) if norm == "fixed" else None,
        "var": numbers(D).exp() if norm == "fixed" else None,
        "running": running if norm == "of batch" else [],
        "of_batch": norm in NORMS[2:],
        "momentum": 0.1,
        "eps": 1e-5,
        "relu": True,
        "prologue": [],
        "prologue_eps": 0.0,
        "prologue_act": 1,
        "prologue_param": 0.0,
    }
    return {**given, **changed}


def backward_arguments(ops: Any, forward: dict[str, Any], **changed: Any) -> dict[str, Any]:
    y, pooled, hidden, logits = ops.sk_forward(**forward)
    names = ("branches", "w_reduce", "weight", "w_select", "mean", "var", "of_batch", "eps", "relu")
    given = {
        "dy": torch.ones_like(y),
        "dlogits": None,
        **{name: forward[name] for name in names},
        "pooled": pooled,
        "hidden": hidden,
        "logits": logits,
        "stacked": False,
        "wanted": 0b1111111 if forward["weight"] is not None else 0b1110011,
    }
    return {**given, **changed}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("m", "layout"), [(1, "nchw"), (3, "nhwc")])
def test_opcheck(ops: Any, m: int, layout: str, norm: str) -> None:
    u = [cases.LAYOUTS[layout](t) for t in branches_of(m, (3, 8, 4, 6))]
    forward = forward_arguments(u, norm)
    torch.library.opcheck(ops.sk_forward.default, (), forward)
    for wanted in (0b1110011, 0b1000000, 0b0010001, 0b0100010):
        for dlogits, stacked in ((None, False), (numbers(3, m, 8), True)):
            backward = backward_arguments(
                ops, forward, wanted=wanted, dlogits=dlogits, stacked=stacked
            )
            torch.library.opcheck(ops.sk_backward.default, (), backward)


WRONG: dict[str, dict[str, Any]] = {
    "w_reduce is a vector": {"w_reduce": numbers(D)},
    "w_reduce of other channels": {"w_reduce": numbers(D, 9)},
    "w_select of two branches": {"w_select": numbers(16, D)},
    "b_reduce": {"b_reduce": numbers(D + 1)},
    "b_select": {"b_select": numbers(D)},
    "weight": {"weight": numbers(D + 1)},
    "bias": {"bias": numbers(D + 1)},
    "half": {"w_reduce": numbers(D, 8).half()},
    "mean without var": {"var": None},
    "mixed layer": {"b_reduce": numbers(D).half()},
    "prologue": {"prologue": [numbers(2, 8)]},
    "prologue of three": {"prologue": [numbers(8)] * 3},
    "prologue's activation": {"prologue": [numbers(2, 3, 8)], "prologue_act": 13},
    "prologue of two norms": {"prologue": [numbers(8)] * 8},
}


@pytest.mark.parametrize("name", WRONG)
def test_kernels_stay_inside_their_arrays(ops: Any, name: str) -> None:
    forward = forward_arguments(branches_of(3, (3, 8, 4, 6)), "fixed")
    ops.sk_forward(**forward)
    with pytest.raises(RuntimeError, match="chattn_cuda"):
        ops.sk_forward(**{**forward, **WRONG[name]})


@pytest.mark.parametrize("i", [0, 1, 2], ids=["mean", "variance", "count"])
def test_what_is_updated_is_checked(ops: Any, i: int) -> None:
    forward = forward_arguments(branches_of(2, (3, 8, 4, 6)), "of batch")
    for wrong in ([numbers(D + 1)], [numbers(2 * D)[::2]], []):
        running = forward["running"][:i] + wrong + forward["running"][i + 1 :]
        if len(running) == 2 and i == 2:
            continue  # there need not be a count
        with pytest.raises(RuntimeError, match="chattn_cuda"):
            ops.sk_forward(**{**forward, "running": running})


@pytest.mark.parametrize("name", ["dy", "dlogits", "pooled", "hidden", "logits", "weight", "mean"])
def test_backward_kernels_stay_inside_their_arrays(ops: Any, name: str) -> None:
    forward = forward_arguments(branches_of(3, (3, 8, 4, 6)), "of batch")
    backward = backward_arguments(ops, forward)
    ops.sk_backward(**backward)
    with pytest.raises(RuntimeError, match="chattn_cuda"):
        ops.sk_backward(**{**backward, name: numbers(3, 2)})


def test_statistics_of_one_sample(ops: Any) -> None:
    forward = forward_arguments(branches_of(2, (1, 8, 4, 6)), "of batch")
    with pytest.raises(RuntimeError, match="fewer than two samples"):
        ops.sk_forward(**forward)


def test_updates_of_the_running_statistics(ops: Any) -> None:
    """As torch's batch norm makes them, of the hidden values before it."""
    forward = forward_arguments(branches_of(2, (7, 8, 4, 6)), "of batch")
    mean, var = (t.clone() for t in forward["running"][:2])
    hidden = ops.sk_forward(**forward)[2]
    torch.nn.functional.batch_norm(hidden[7:14], mean, var, training=True, momentum=0.1)
    torch.testing.assert_close(forward["running"], [mean, var, torch.tensor(4)])


@pytest.mark.parametrize("act", [(1, 0.0), (3, 0.2)], ids=["relu", "leaky_relu"])
@pytest.mark.parametrize("joint", [True, False], ids=["one norm", "two norms"])
def test_norms_as_a_prologue(ops: Any, joint: bool, act: tuple[int, float]) -> None:
    """The same as their scale and shift."""
    c = 8
    weight, bias, mean, var = (numbers(2 * c, k)[:, 0] for k in range(1, 5))
    var = var.exp()
    scale = weight / (var + 1e-3).sqrt()
    numbers_of = torch.stack([scale, bias - mean * scale])
    parts = [t.chunk(2) for t in (weight, bias, mean, var)]
    norms = [p[m].contiguous() for m in range(2) for p in parts]
    norms = [weight, bias, mean, var] if joint else norms
    forward = forward_arguments(
        branches_of(2, (3, c, 4, 6)), "fixed", prologue_act=act[0], prologue_param=act[1]
    )
    given = {**forward, "prologue": norms, "prologue_eps": 1e-3}
    expected = ops.sk_forward(**{**forward, "prologue": [numbers_of]})
    for one, two in zip(ops.sk_forward(**given), expected, strict=True):
        torch.testing.assert_close(one, two)


def test_statistics_keep_the_digits_of_many_samples(ops: Any) -> None:
    """Float32 sums of them would be off by ten units in the last place."""
    u = [t + 300 for t in branches_of(2, (4096, 8, 1, 1))]
    rows = ops.sk_forward(**forward_arguments(u, "of batch"))[2]
    hidden, mean, var = rows[4096:8192].double(), rows[8192], rows[8193]
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(mean.double(), hidden.mean(0), rtol=eps, atol=0)
    torch.testing.assert_close(var.double(), hidden.var(0, correction=0), rtol=eps, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("norm", NORMS[:2])
@pytest.mark.parametrize("shape", [(1, 8, 9, 9), (7, 24, 40, 40), (5, 300, 3, 3), (64, 16, 28, 28)])
def test_every_schedule_gives_the_same(shape: Any, norm: str, threads: int) -> None:
    """Tiles of samples, or stages that the threads share."""
    cases.require("cpu")
    forward = forward_arguments(branches_of(2, shape), norm)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y, pooled, _, logits = torch.ops.chattn_cuda.sk_forward(**forward)
    finally:
        torch.set_num_threads(before)
    u = forward["branches"]
    torch.testing.assert_close(pooled, torch.ops.chattn_cuda.sk_squeeze(u))
    torch.testing.assert_close(y, torch.ops.chattn_cuda.sk_select(u, logits))
