"""One schema for an operator, whoever implements it, and what torch is told of it fits."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from chattn_cuda import backends
from chattn_cuda.ops import sk, tail
from chattn_cuda.ops.blocks import BLOCKS
from chattn_cuda.ops.calls import operator_of
from tests import cases

FAKES = sk.FAKES | tail.FAKES
OPERATORS = [
    *FAKES, *tail.WHOLE, *(f"{name}_{way}" for name in BLOCKS for way in ("forward", "backward")),
]  # fmt: skip
NATIVE = "chattn_cuda"
#: The network between the passes of a selective kernel is PyTorch's there.
LACKING = {"triton": {"sk_forward", "sk_backward"}}


def schema_of(namespace: str, name: str) -> Any:
    return operator_of(namespace, name)._schema


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("name", OPERATORS)
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
def test_described_schemas_are_the_native_ones(name: str) -> None:
    cases.require("cpu")
    for schema in BLOCKS[name].schemas:
        operator = schema.partition("(")[0]
        assert str(schema_of(NATIVE, operator)).partition("::")[2] == schema


@pytest.mark.parametrize("name", BLOCKS)
def test_formulas_take_what_the_operator_takes(name: str) -> None:
    cases.require("cpu")
    arguments = [a.name for a in schema_of(NATIVE, f"{name}_forward").arguments]
    assert list(inspect.signature(BLOCKS[name].formulas).parameters) == arguments
