"""How many functions of Python a forward enters: what the host's time is made of.

`tools/host_time.py` shows the time itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from chattn_cuda import accelerate, functional
from chattn_cuda.modules import (
    CircularEfficientChannelAttention,
    EffectiveSqueezeExcite,
    EfficientChannelAttention,
    GatherExcite,
    SelectiveKernelAttn,
    SqueezeExcite,
    SqueezeExciteCl,
)
from tests import cases, exported

MOST = 40  # of a selective kernel
INFERENCE, TRAINING, FUNCTION = 25, 30, 15


def is_apply(code: Any) -> bool:
    """Whether it is part of ``Function.apply``, which torch 2.11 has in Python."""
    names = ("apply", "_is_setup_context_defined")
    own = code.co_filename.endswith("/torch/autograd/function.py") and code.co_name in names
    return own or "/torch/_functorch/" in code.co_filename


def python_calls(call: Callable[[], Any], also_layers: bool = False) -> int:
    """Functions entered by ``call``, but for those of nn.Module and its layers."""
    call()
    entered, layers = 0, 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal entered, layers
        in_layer = "/torch/nn/modules/" in frame.f_code.co_filename
        if event == "call" and not is_apply(frame.f_code):
            layers += in_layer
            entered += not in_layer

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    assert entered > 5
    return entered - 1 + (layers if also_layers else 0)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "SE": lambda: SqueezeExcite(64),
    "SE with a norm": lambda: SqueezeExcite(64, norm_layer=nn.BatchNorm2d),
    "SE of Linear": lambda: SqueezeExciteCl(64),
    "GE": lambda: GatherExcite(64),
    "effective SE": lambda: EffectiveSqueezeExcite(64),
    "ECA": lambda: EfficientChannelAttention(64),
    "circular ECA": lambda: CircularEfficientChannelAttention(64),
    **{
        peer.path: partial(exported.make, peer.load(), peer.path, 64)
        for peer in exported.PEERS
        if peer.mixin._fusible  # selective kernels have tests of their own
    },
}


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast", "training"])
@pytest.mark.parametrize("name", MODULES)
def test_module(name: str, mode: str) -> None:
    """All of them, those of nn.Module included."""
    cases.require("cpu")
    module, training = MODULES[name](), mode == "training"
    if name in exported.ACCELERATED:
        assert accelerate(module, "cpu").changed
    module.train(training and "norm" not in name)
    x = torch.randn((2, 64, 2, 2) if exported.channel_dim(module) == 1 else (2, 2, 2, 64))
    if mode == "autocast":  # float32 weights beside a bfloat16 map
        x = x.bfloat16()
    with (
        torch.inference_mode(mode == "inference_mode"),
        torch.set_grad_enabled(training),
        torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"),
    ):
        entered = python_calls(lambda: module(x.requires_grad_(training)), also_layers=True)
    assert entered <= (TRAINING if training else INFERENCE)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        *((block.function, block.weights(64)) for block in exported.of_one_map()),
        (functional.selective_kernel, [(8, 64), (8,), (128, 8), (128,)]),
    ],
)
def test_functions(function: Any, shapes: list[tuple[int, ...]], grad: bool) -> None:
    cases.require("cpu")
    x, weights = torch.randn(2, 64, 4, 4, requires_grad=grad), [torch.randn(s) for s in shapes]
    maps = [x, x] if function is functional.selective_kernel else x
    with torch.set_grad_enabled(grad):
        assert python_calls(lambda: function(maps, *weights)) <= FUNCTION


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_selective_kernel(grad: bool, dtype: torch.dtype) -> None:
    cases.require("cpu")
    attn = SelectiveKernelAttn(64, backend="cpu").train(grad)
    u = [torch.randn(2, 64, 4, 4).to(dtype).requires_grad_(grad) for _ in range(2)]
    with torch.set_grad_enabled(grad):
        assert python_calls(lambda: attn.weigh(u)) <= MOST


def test_accelerated_module() -> None:
    """Without its paths' layers."""
    cases.require("cpu")
    timm = pytest.importorskip("timm")
    module: nn.Module = timm.layers.SelectiveKernel(64).eval()
    accelerate(module, "cpu")
    x = torch.randn(2, 64, 4, 4)
    with torch.no_grad():
        assert python_calls(lambda: module(x)) <= MOST
