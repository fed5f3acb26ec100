"""How many functions of Python a forward enters: what the host's time is made of.

`tools/host_time.py` shows the time itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from chattn_cuda import accelerate, functional
from chattn_cuda.modules import SelectiveKernelAttn
from tests import cases

MOST = 40


def python_calls(call: Callable[[], Any]) -> int:
    """Functions entered by ``call``, but for those of nn.Module and its layers."""
    call()
    entered, layers = 0, 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal entered, layers
        in_layer = "/torch/nn/modules/" in frame.f_code.co_filename
        if event == "call":
            layers += in_layer
            entered += not in_layer

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    assert entered > 5
    return entered - 1


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_selective_kernel(grad: bool, dtype: torch.dtype) -> None:
    cases.require("cpu")
    attn = SelectiveKernelAttn(64, backend="cpu").train(grad)
    u = [torch.randn(2, 64, 4, 4).to(dtype).requires_grad_(grad) for _ in range(2)]
    with torch.set_grad_enabled(grad):
        assert python_calls(lambda: attn.weigh(u)) <= MOST


def test_function() -> None:
    cases.require("cpu")
    u = [torch.randn(2, 64, 4, 4) for _ in range(2)]
    w1, w2 = torch.randn(8, 64), torch.randn(128, 8)
    call = functional.selective_kernel
    assert python_calls(lambda: call(u, w1, None, w2, None, backend="cpu")) <= MOST


def test_accelerated_module() -> None:
    """Without its paths' layers."""
    cases.require("cpu")
    timm = pytest.importorskip("timm")
    module: nn.Module = timm.layers.SelectiveKernel(64).eval()
    accelerate(module, "cpu")
    x = torch.randn(2, 64, 4, 4)
    with torch.no_grad():
        assert python_calls(lambda: module(x)) <= MOST
