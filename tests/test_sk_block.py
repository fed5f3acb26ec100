"""The selective kernel with its network as one pair of operators: the CPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import cases
from tests.test_selective_kernel import branches_of

D = 5
NORMS = ("none", "fixed", "of batch", "of batch alone")


@pytest.fixture(autouse=True)
def _available() -> None:
    cases.require("cpu")


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def forward_arguments(u: list[Tensor], norm: str, **changed: Any) -> dict[str, Any]:
    c, m = u[0].shape[1], len(u)
    given = {
        "branches": u,
        "w_reduce": numbers(D, c, 1, 1),
        "b_reduce": numbers(D),
        "weight": numbers(D) if norm != "none" else None,
        "bias": numbers(D) if norm != "none" else None,
        "w_select": numbers(m * c, D, 1, 1),
        "b_select": numbers(m * c),
        "mean": numbers(D) if norm in NORMS[1:3] else None,
        "var": numbers(D).exp() if norm in NORMS[1:3] else None,
        "of_batch": norm in NORMS[2:],
        "momentum": 0.1,
        "eps": 1e-5,
        "relu": True,
    }
    return {**given, **changed}


def backward_arguments(forward: dict[str, Any], **changed: Any) -> dict[str, Any]:
    outputs = torch.ops.chattn_cuda.sk_forward(**forward)
    y, pooled, hidden, activated, mean, var, logits = outputs
    names = ("branches", "w_reduce", "weight", "w_select", "of_batch", "eps", "relu")
    given = {
        "dy": torch.ones_like(y),
        "dlogits": None,
        **{name: forward[name] for name in names},
        "mean": mean if forward["of_batch"] else forward["mean"],
        "var": var if forward["of_batch"] else forward["var"],
        "pooled": pooled,
        "hidden": hidden,
        "activated": activated,
        "logits": logits,
        "stacked": False,
        "need_dx": True,
        "need_dw": True,
    }
    return {**given, **changed}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("m", [1, 3])
def test_opcheck(m: int, layout: str, norm: str) -> None:
    u = [cases.LAYOUTS[layout](t) for t in branches_of(m, (3, 8, 4, 6))]
    forward = forward_arguments(u, norm)
    torch.library.opcheck(torch.ops.chattn_cuda.sk_forward.default, (), forward)
    for need_dx, need_dw in ((True, True), (True, False), (False, True)):
        for dlogits, stacked in ((None, False), (numbers(3, m, 8), True)):
            backward = backward_arguments(
                forward, need_dx=need_dx, need_dw=need_dw, dlogits=dlogits, stacked=stacked
            )
            torch.library.opcheck(torch.ops.chattn_cuda.sk_backward.default, (), backward)


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
    "strided mean": {"mean": numbers(2 * D)[::2]},
    "prologue": {"prologue": numbers(2, 8)},
}


@pytest.mark.parametrize("name", WRONG)
def test_kernels_stay_inside_their_arrays(name: str) -> None:
    forward = forward_arguments(branches_of(3, (3, 8, 4, 6)), "fixed")
    torch.ops.chattn_cuda.sk_forward(**forward)
    with pytest.raises(RuntimeError, match="chattn_cuda"):
        torch.ops.chattn_cuda.sk_forward(**{**forward, **WRONG[name]})


@pytest.mark.parametrize(
    "name", ["dy", "dlogits", "pooled", "hidden", "activated", "logits", "weight", "mean"]
)
def test_backward_kernels_stay_inside_their_arrays(name: str) -> None:
    forward = forward_arguments(branches_of(3, (3, 8, 4, 6)), "of batch")
    backward = backward_arguments(forward)
    torch.ops.chattn_cuda.sk_backward(**backward)
    with pytest.raises(RuntimeError, match="chattn_cuda"):
        torch.ops.chattn_cuda.sk_backward(**{**backward, name: numbers(3, 2)})


def test_statistics_of_one_sample() -> None:
    forward = forward_arguments(branches_of(2, (1, 8, 4, 6)), "of batch")
    with pytest.raises(RuntimeError, match="fewer than two samples"):
        torch.ops.chattn_cuda.sk_forward(**forward)


def test_statistics_keep_the_digits_of_many_samples() -> None:
    """Float32 sums of them would be off by ten units in the last place."""
    u = [t + 300 for t in branches_of(2, (4096, 8, 1, 1))]
    outputs = torch.ops.chattn_cuda.sk_forward(**forward_arguments(u, "of batch"))
    hidden, mean, var = outputs[2].double(), outputs[4], outputs[5]
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(mean.double(), hidden.mean(0), rtol=eps, atol=0)
    torch.testing.assert_close(var.double(), hidden.var(0, correction=0), rtol=eps, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("norm", NORMS[:2])
@pytest.mark.parametrize("shape", [(1, 8, 9, 9), (7, 24, 40, 40), (5, 300, 3, 3), (64, 16, 28, 28)])
def test_every_schedule_gives_the_same(shape: Any, norm: str, threads: int) -> None:
    """Tiles of samples, or stages that the threads share."""
    forward = forward_arguments(branches_of(2, shape), norm)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y, pooled, _, _, _, _, logits = torch.ops.chattn_cuda.sk_forward(**forward)
    finally:
        torch.set_num_threads(before)
    u = forward["branches"]
    torch.testing.assert_close(pooled, torch.ops.chattn_cuda.sk_squeeze(u))
    torch.testing.assert_close(y, torch.ops.chattn_cuda.sk_select(u, logits))
