"""The operators count for FlopCounterMode what the layers count that they stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from chattn_cuda import accelerate, backends
from tests import cases

timm = pytest.importorskip("timm", reason="timm is not installed")

BUILD: dict[str, Callable[[], nn.Module]] = {
    "se": lambda: timm.layers.SEModule(16, rd_channels=6),
    "effective-se": lambda: timm.layers.EffectiveSEModule(16),
    "eca": lambda: timm.layers.EcaModule(16),
    "ceca": lambda: timm.layers.CecaModule(16),
    "sk": lambda: timm.layers.SelectiveKernel(16, rd_channels=6),
    "sk-3": lambda: timm.layers.SelectiveKernel(
        16, kernel_size=[3, 5, 7], rd_channels=6, split_input=False
    ),
    "split-attention": lambda: timm.layers.SplitAttn(16, norm_layer=nn.BatchNorm2d),
    "split-attention-groups": lambda: timm.layers.SplitAttn(16, groups=2, radix=4),
}
#: Operators that run, each with the FLOPs of the eager layers inside it (None: some).
OPERATORS: dict[str, dict[str, int | None]] = {
    "se": {"se_forward": 2 * 3 * 2 * 16 * 6, "se_backward": None},
    "effective-se": {"se_forward": 2 * 3 * 16 * 16, "se_backward": None},
    "eca": {"eca_forward": 2 * 3 * 16 * 3, "eca_backward": None},
    "ceca": {"eca_forward": 2 * 3 * 16 * 3, "eca_backward": None},
}
SK: dict[str, int | None] = {"sk_squeeze": 0, "sk_select": 0, "sk_dot": 0, "sk_gradient": 0}

#: On native backends the usual network is part of the block's operators.
WHOLE: dict[str, int | None] = {"sk_forward": None, "sk_backward": None}

#: PyTorch counts the gradient of a grouped convolution's weight as if each group had all channels.
#: Those of the two small layers are products per group here, counted for what they are.
TOO_MANY = {"split-attention-groups": 2 * 3 * (32 * 8 + 64 * 16)}


def count(module: nn.Module, x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """FLOPs of a forward and of a backward; and those of every operator of this package."""
    module.zero_grad()
    with FlopCounterMode(display=False) as forward:
        y = module(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    mine = {
        str(k).partition(".")[2]: v
        for counter in (forward, backward)
        for k, v in counter.get_flop_counts().get("Global", {}).items()
        if str(k).startswith("chattn_cuda")
    }
    return (forward.get_total_flops(), backward.get_total_flops()), mine


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("need_dx", [True, False], ids=["dx", ""])
@pytest.mark.parametrize("name", BUILD)
def test_same_flops(name: str, need_dx: bool, layout: str, backend: str) -> None:
    cases.require(backend)
    device = cases.device_of(backend)
    plain: Any = BUILD[name]().to(device)
    fast = copy.deepcopy(plain)
    assert accelerate(fast, backend).changed
    x = cases.LAYOUTS[layout](torch.randn(3, 16, 6, 5)).to(device).requires_grad_(need_dx)
    expected, nothing = count(plain, x)
    assert not nothing and min(expected) > 0
    actual, operators = count(fast, x)
    assert actual == (expected[0], expected[1] - TOO_MANY.get(name, 0))
    whole = backend != "triton" and name != "split-attention-groups"
    known = OPERATORS.get(name, WHOLE if whole else SK)
    assert set(operators) == set(known)
    for operator, flops in known.items():
        assert operators[operator] == flops if flops is not None else operators[operator] > 0


def test_counting_does_not_change_what_runs() -> None:
    """Another mode than a counter, and none, see the same operators."""
    if backends.select("auto", "cpu") == "reference":
        pytest.skip("needs a backend with operators")
    module = accelerate(BUILD["sk"]().eval()).model
    x = torch.randn(3, 16, 6, 5)
    expected = module(x)
    with FlopCounterMode(display=False):
        assert torch.equal(module(x), expected)
