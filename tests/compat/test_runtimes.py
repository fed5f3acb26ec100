"""Other runtimes read what torch.export makes of an accelerated model.

They are no requirement of the tests: pip install openvino executorch coremltools
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

from chattn_cuda import decompositions  # noqa: E402
from tests.compat.models import FUSED_NAME, assert_same, images, pair  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def core_program() -> tuple[Any, torch.Tensor]:
    """The program with core ATen operators alone, of one with ours; what it must give."""
    fast, plain = pair(backend=FUSED_NAME)
    table = torch.export.default_decompositions()
    table.update(decompositions())
    program = torch.export.export(fast.eval(), (images(),)).run_decompositions(table)
    return program, plain.eval()(images()).detach()


def test_openvino() -> None:
    openvino = pytest.importorskip("openvino")
    program, expected = core_program()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(openvino.convert_model(program), "CPU", exact)
    assert_same(torch.tensor(model(images().numpy())[0]), expected, 1e-4)


def test_executorch() -> None:
    exir = pytest.importorskip("executorch.exir")
    runtime = pytest.importorskip("executorch.runtime")
    program, expected = core_program()
    file = exir.to_edge(program).to_executorch().buffer
    method = runtime.Runtime.get().load_program(file).load_method("forward")
    assert_same(method.execute([images()])[0], expected)


def test_core_ml_converts() -> None:
    """It runs on macOS alone."""
    coremltools = pytest.importorskip("coremltools")
    program, _ = core_program()
    assert coremltools.convert(program).get_spec().WhichOneof("Type") == "mlProgram"
