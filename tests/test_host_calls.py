"""How many functions of Python a forward enters: what the host's time is made of.

`tools/host_time.py` shows the time itself.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
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
from tests import cases

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


def _of(library: str, name: str, *arguments: int) -> Callable[[], nn.Module]:
    """A class of another library, by its place there."""
    return lambda: operator.attrgetter(name)(pytest.importorskip(library))(64, *arguments)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "SE": lambda: SqueezeExcite(64),
    "SE with a norm": lambda: SqueezeExcite(64, norm_layer=nn.BatchNorm2d),
    "SE of Linear": lambda: SqueezeExciteCl(64),
    "GE": lambda: GatherExcite(64),
    "effective SE": lambda: EffectiveSqueezeExcite(64),
    "ECA": lambda: EfficientChannelAttention(64),
    "circular ECA": lambda: CircularEfficientChannelAttention(64),
    "timm SEModule": _of("timm", "layers.SEModule"),
    "timm EffectiveSEModule": _of("timm", "layers.EffectiveSEModule"),
    "timm EcaModule": _of("timm", "layers.EcaModule"),
    "timm CecaModule": _of("timm", "layers.CecaModule"),
    "timm SqueezeExcite": _of("timm", "models._efficientnet_blocks.SqueezeExcite"),
    "torchvision SqueezeExcitation": _of("torchvision", "ops.SqueezeExcitation", 8),
}


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast", "training"])
@pytest.mark.parametrize("name", MODULES)
def test_module(name: str, mode: str) -> None:
    """All of them, those of nn.Module included."""
    cases.require("cpu")
    module, training = MODULES[name](), mode == "training"
    if "." in type(module).__module__ and not type(module).__module__.startswith("chattn_cuda"):
        assert accelerate(module, "cpu").changed
    module.train(training and "norm" not in name)
    x = torch.randn((2, 2, 2, 64) if isinstance(module, SqueezeExciteCl) else (2, 64, 2, 2))
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
def test_functions(grad: bool) -> None:
    cases.require("cpu")
    x = torch.randn(2, 64, 4, 4)
    w1, b1, w2, b2 = torch.randn(8, 64), torch.randn(8), torch.randn(64, 8), torch.randn(64)
    full, kernel, w3 = torch.randn(64, 64), torch.randn(1, 1, 3), torch.randn(128, 8)
    for call in (
        lambda: functional.squeeze_excite(x, w1, b1, w2, b2),
        lambda: functional.effective_squeeze_excite(x, full, b2),
        lambda: functional.efficient_channel_attention(x, kernel),
        lambda: functional.selective_kernel([x, x], w1, b1, w3, None),
    ):
        with torch.set_grad_enabled(grad):
            x.requires_grad_(grad)
            assert python_calls(call) <= FUNCTION


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
