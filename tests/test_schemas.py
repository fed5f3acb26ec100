"""One schema for an operator, whoever implements it, and what torch is told of it fits."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from chattn_cuda import backends
from chattn_cuda.ops import sk
from chattn_cuda.ops.autograd import BLOCKS
from chattn_cuda.ops.calls import operator_of
from tests import cases

FAKES = dict(sk.FAKES)
for _block in BLOCKS.values():
    FAKES |= {f"{_block.name}_forward": _block.fake_forward}
    FAKES |= {f"{_block.name}_backward": _block.fake_backward}
NATIVE = "chattn_cuda"
#: The network between the passes of a selective kernel is PyTorch's there.
LACKING = {"triton": {"sk_forward", "sk_backward"}}


def schema_of(namespace: str, name: str) -> Any:
    return operator_of(namespace, name)._schema


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("name", FAKES)
def test_backends_share_schemas(name: str, backend: str) -> None:
    cases.require(backend)
    namespace = backends.get(backend).namespace
    assert namespace is not None
    if name in LACKING.get(backend, ()):
        with pytest.raises(AttributeError):
            operator_of(namespace, name)
        return
    own, native = (str(schema_of(n, name)).partition("::")[2] for n in (namespace, NATIVE))
    assert own == native


@pytest.mark.parametrize("name", FAKES)
def test_shapes_are_told_for_these_arguments(name: str) -> None:
    cases.require("cpu")
    arguments = [a.name for a in schema_of(NATIVE, name).arguments]
    assert list(inspect.signature(FAKES[name]).parameters) == arguments


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_say_what_their_operators_take_and_return(name: str) -> None:
    """`Block` counts tensors and results; the formulas take what the forward operator takes."""
    cases.require("cpu")
    block = BLOCKS[name]
    forward, backward = (schema_of(NATIVE, f"{name}_{way}") for way in ("forward", "backward"))
    arguments = [a.name for a in forward.arguments]
    assert list(inspect.signature(block.formulas).parameters) == arguments
    tensors = ["Tensor" in str(a.type) for a in forward.arguments]
    assert tensors == [True] * block.tensors + [False] * (len(tensors) - block.tensors)
    results = [r.name for r in forward.returns]
    assert results[0] == "y" and results[-1] == "gate" and len(results) == 1 + block.saved
    weights = [a for i, a in enumerate(arguments[: block.tensors]) if i not in block.biases]
    operands = [weights[0], *results[1:], *weights[1:]]
    expected = ["dy", "dgate", *operands, *arguments[block.tensors :], "need_dx", "need_dw"]
    assert [a.name for a in backward.arguments] == expected
    gradients = [r.name for r in backward.returns]
    assert gradients == [f"d{a}" for a in arguments[: block.tensors]]
