"""The operators as plain operations: the same numbers, and readable without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import chattn_cuda
from chattn_cuda import backends
from tests import cases, exported
from tests.exported import assert_same, maps, own_operators, pair
from tests.test_operator_gradients import DERIVABLE, flat, samples

FUSED = backends.select("auto", "cpu")


def variants(ops: Any, name: str, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The sample, and with other gates, layers or gradients."""
    found = [args]
    if name == "se_forward":
        x, _, _, w2, b2, *_ = args
        found += [(*args[:5], 12, 0.0, gate) for gate in (0, 1, 11, 12)]
        found.append((x, None, None, w2.new_ones(4, 4), b2, 0, 0.0, 11))
        found.append((x.contiguous(memory_format=torch.channels_last), *args[1:]))
    if name in ("sk_squeeze", "sk_select"):
        prologue = args[0][0].new_ones(2, 2 * 4)
        found += [(*args[:-3], prologue, code, 0.3) for code in (1, 3, 9)]
    return found


@pytest.mark.parametrize("backend", cases.fused_backends())
def test_the_same_numbers(backend: str) -> None:
    cases.require(backend)
    namespace = str(backends.get(backend).namespace)
    ops, table = getattr(torch.ops, namespace), chattn_cuda.decompositions()
    given = samples(ops)
    for name in DERIVABLE:
        if name.startswith("tail"):  # exported programs have the layers
            continue
        operator = getattr(ops, name).default
        for args in variants(ops, name, given[name]):
            results, expected = flat(table[operator](*args)), flat(operator(*args))
            for actual, wanted in zip(results, expected, strict=True):
                assert actual.dtype == wanted.dtype and actual.stride() == wanted.stride(), name
                torch.testing.assert_close(actual, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", [*exported.BLOCKS, "efficient_channel_attention circular"])
def test_core_operators_alone(name: str) -> None:
    fast, plain = pair(name, FUSED)
    program = torch.export.export(fast.eval(), (maps(),))
    assert own_operators(program.graph_module) or FUSED == "reference"
    table = torch.export.default_decompositions()
    table.update(chattn_cuda.decompositions())
    program = program.run_decompositions(table)
    assert_same({"y": program.module()(maps()).detach()}, {"y": plain.eval()(maps()).detach()})
    assert not_core(program) == set()


def not_core(program: Any) -> set[str]:
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    found = [t for t in targets if isinstance(t, torch._ops.OpOverload)]
    return {str(t) for t in found if torch.Tag.core not in t.tags}


@pytest.mark.parametrize("name", exported.FUNCTIONS)
def test_formulas_are_of_core_operators(name: str) -> None:
    """What is exported where no backend is named."""
    fast, _ = pair(name)
    program = torch.export.export(fast, (maps(),)).run_decompositions()
    assert not_core(program) == set()


def test_own_table_alone_leaves_other_operators() -> None:
    fast, plain = pair("SplitAttn", FUSED)
    program = torch.export.export(fast.eval(), (maps(),))
    program = program.run_decompositions(chattn_cuda.decompositions())
    assert own_operators(program.graph_module) == []
    assert_same({"y": program.module()(maps()).detach()}, {"y": plain.eval()(maps()).detach()})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", exported.BLOCKS)
def test_onnx_of_a_program(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    fast, plain = pair(name, FUSED)
    x = maps().float()
    program = torch.export.export(fast.float().eval(), (x,))
    program = program.run_decompositions(chattn_cuda.decompositions())
    path = tmp_path / "net.onnx"
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = plain.float().eval()(x).detach()
    assert_same({"y": torch.from_numpy(y)}, {"y": expected}, 1e-5)
