"""The number of threads shares out the work on a CPU and changes no bit of a result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from chattn_cuda.cli.cases import Problem, Row
from tests import cases
from tests.cases import BLOCKS, Case, Config

# Few samples and many, several spans and one, rows of one position and of several, more threads
# than positions.
SHAPES = {
    "one-sample": (1, 72, 28, 27),
    "few-channels": (1, 3, 64, 65),
    "odd": (2, 250, 9, 11),
    "long-rows": (1, 1100, 7, 7),
    "samples": (5, 300, 10, 10),
    "two-positions": (3, 520, 1, 2),
}
OPTIONS = {name: block.threads for name, block in BLOCKS.items() if block.threads is not None}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nhwc_channel_slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("name", list(OPTIONS))
def test_result_does_not_depend_on_threads(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str
) -> None:
    cases.require("cpu")
    block, options = BLOCKS[name], OPTIONS[name]
    inputs = cases.make_inputs(Case(name, "cpu", Config("threads", shape, options), dtype, layout))
    results: list[list[Tensor]] = []
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        x, parameters, dy = inputs.to(dtype)
        y, gate = block.run(x, parameters, options, "cpu")
        leaves = [x, *(p for p in parameters.values() if p is not None)]
        # The gate of a selective kernel that a caller sees is torch's softmax of our logits.
        shown = [] if name == "sk" else [gate]
        results.append([y, *shown, *torch.autograd.grad(y, leaves, dy)])
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert torch.equal(first, again)


def test_network_with_a_batch_norm_does_not_depend_on_threads() -> None:
    """The module hands its norm to the operators."""
    cases.require("cpu")
    pytest.importorskip("timm")
    call = Problem(Row("sk", (6, 72, 9, 11), "channels_last", "forward+backward")).call("cpu")
    results = []
    for threads in (1, 2, 16):
        torch.set_num_threads(threads)
        results.append(call())
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert torch.equal(first, again)
