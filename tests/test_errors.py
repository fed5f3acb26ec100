"""Bad input gets a clear error: the argument, what was expected, what came."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import (
    CircularEfficientChannelAttention,
    EfficientChannelAttention,
    EfficientChannelAttentionNS,
    SqueezeExcite,
    _native,
    activations,
    backends,
)
from chattn_cuda.functional import (
    efficient_channel_attention,
    squeeze_excite,
)
from chattn_cuda.modules import SEGC, GatherExcite, SEVar3, adaptive_kernel_size
from tests.cases import BLOCKS


def arguments(**changes: Any) -> dict[str, Any]:
    values = {
        "x": torch.randn(2, 6, 3, 5),
        "w1": torch.randn(4, 6),
        "b1": torch.randn(4),
        "w2": torch.randn(6, 4),
        "b2": torch.randn(6),
    }
    return {**values, **changes}


def call(**changes: Any) -> Callable[[], Any]:
    return lambda: squeeze_excite(**arguments(**changes))


def module(x: Any, **options: Any) -> Callable[[], Any]:
    return lambda: SqueezeExcite(6, **options)(x)


def eca(**changes: Any) -> Callable[[], Any]:
    values = {"x": torch.randn(2, 6, 3, 5), "weight": torch.randn(1, 1, 3), **changes}
    return lambda: efficient_channel_attention(**values)


X = torch.randn(2, 6, 3, 5)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # quantised tensors are deprecated, and still there
    QUANTISED = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)

BAD: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "x of other channels": (
        call(x=X[0]),
        ValueError,
        ("w1 must have shape (rd, 3)", "x with 3 channels"),
    ),
    "x 6-D": (call(x=X[None, None]), ValueError, ("x must have shape", "(1, 1, 2, 6, 3, 5)")),
    "x 2-D": (
        call(x=X[0, 0]),
        ValueError,
        ("x must have shape (N, C, H, W) or (N, C, L) or (N, C, D, H, W), got (3, 5)",),
    ),
    "x 1-D, channels last": (
        call(x=X[0, 0, 0], channel_dim=-1),
        ValueError,
        ("x must have shape (N, H, W, C) or (N, L, C) or (N, D, H, W, C), got (5,)",),
    ),
    "add_maxpool": (
        call(add_maxpool=None),
        TypeError,
        ("add_maxpool must be True or False, got None",),
    ),
    "channel_dim": (call(channel_dim=2), ValueError, ("channel_dim must be 1 or -1, got 2",)),
    "x not a tensor": (call(x=[1.0]), TypeError, ("x must be a tensor", "got list")),
    "x None": (call(x=None), TypeError, ("x must be a tensor", "got NoneType")),
    "x integer": (call(x=X.int()), TypeError, ("x must have dtype float32", "got torch.int32")),
    "x bool": (call(x=X > 0), TypeError, ("x must have dtype", "got torch.bool")),
    "x complex": (
        call(x=X.to(torch.complex64)),
        TypeError,
        ("x must have dtype", "got torch.complex64"),
    ),
    "x quantised": (call(x=QUANTISED), TypeError, ("x must have dtype", "got torch.qint8")),
    "x sparse": (
        call(x=X.to_sparse()),
        TypeError,
        ("x must be a dense tensor", "got layout torch.sparse_coo"),
    ),
    "w1 other channels": (
        call(w1=torch.randn(4, 7)),
        ValueError,
        ("w1 must have shape (rd, 6) or (rd, 6, 1, 1)", "x with 6 channels", "got (4, 7)"),
    ),
    "w1 3x3": (call(w1=torch.randn(4, 6, 3, 3)), ValueError, ("w1 must", "(4, 6, 3, 3)")),
    "w1 1-D": (call(w1=torch.randn(6)), ValueError, ("w1 must have shape", "got (6,)")),
    "w1 3-D": (call(w1=torch.randn(4, 6, 1)), ValueError, ("w1 must have shape", "got (4, 6, 1)")),
    "w1 no rows": (
        call(w1=torch.randn(0, 6), b1=None, w2=torch.randn(6, 0)),
        ValueError,
        ("w1 must have at least one row (rd >= 1)", "(0, 6)"),
    ),
    "w1 None": (call(w1=None), TypeError, ("w1 must be a tensor", "got NoneType")),
    "w1 integer": (call(w1=torch.ones(4, 6).int()), TypeError, ("w1 must have dtype", "int32")),
    "w1 sparse": (call(w1=torch.ones(4, 6).to_sparse()), TypeError, ("w1 must be a dense",)),
    "w2 transposed": (
        call(w2=torch.randn(4, 6)),
        ValueError,
        ("w2 must have shape (6, 4) or (6, 4, 1, 1)", "got (4, 6)"),
    ),
    "b1 size": (call(b1=torch.randn(6)), ValueError, ("b1 must have shape (4,)", "got (6,)")),
    "b2 size": (call(b2=torch.randn(1, 6)), ValueError, ("b2 must have shape (6,)", "got (1, 6)")),
    "b2 a float": (call(b2=1.0), TypeError, ("b2 must be a tensor", "got float")),
    "w1 on another device": (
        call(w1=torch.randn(4, 6, device="meta")),
        ValueError,
        ("w1 must be on the device of x (cpu)", "it is on meta"),
    ),
    "b2 on another device": (
        call(b2=torch.randn(6, device="meta")),
        ValueError,
        ("b2 must be on the device of x (cpu)", "meta"),
    ),
    "x half, weights float": (
        call(x=X.half()),
        ValueError,
        ("w1 must have the dtype of x (torch.float16) outside autocast", "got torch.float32"),
    ),
    "b2 of another dtype": (
        call(b2=torch.randn(6).double()),
        ValueError,
        ("b2 must have the dtype of x (torch.float32)", "got torch.float64"),
    ),
    "unknown act": (
        call(act="rleu"),
        ValueError,
        ("act is not a known activation: 'rleu'", "known are", "relu", "swish", "gelu_tanh"),
    ),
    "unknown gate": (call(gate="sigmoud"), ValueError, ("gate is not", "'sigmoud'", "sigmoid")),
    "act None": (call(act=None), TypeError, ("act must be", "got NoneType")),
    "act a number": (call(act=1), TypeError, ("act must be", "got int")),
    "unknown backend": (
        call(backend="gpu"),
        ValueError,
        ("backend must be one of auto, cuda, triton, cpu, reference", "got 'gpu'"),
    ),
    "backend not a string": (call(backend=0), TypeError, ("backend must be a string", "got int")),
    "backend unhashable": (call(backend=["cpu"]), TypeError, ("backend must be", "got list")),
    "backend for another device": (
        call(backend="cuda"),
        ValueError,
        ("backend 'cuda' cannot run here", "x is on 'cpu'", "these can:", "reference"),
    ),
    "module: channels of x": (
        module(torch.randn(2, 7, 3, 5)),
        ValueError,
        ("x must have shape (N, 6, H, W)", "got (2, 7, 3, 5)"),
    ),
    "module: 3-D": (module(X[0]), ValueError, ("x must have shape (N, 6, H, W)",)),
    "module: not a tensor": (module(None), TypeError, ("x must be a tensor", "NoneType")),
    "module: mixed dtypes": (
        module(X.half()),
        ValueError,
        ("fc1.weight must have the dtype of x (torch.float16)", "torch.float32"),
    ),
    "module: mixed devices": (
        module(X, device="meta"),
        ValueError,
        ("fc1.weight must be on the device of x (cpu)", "meta"),
    ),
    "module: backend": (module(X, backend="cuda"), ValueError, ("'cuda' cannot run here",)),
    "constructor: backend": (lambda: SqueezeExcite(6, backend="gpu"), ValueError, ("'gpu'",)),
    "constructor: channels": (
        lambda: SqueezeExcite(0),
        ValueError,
        ("channels must be at least 1",),
    ),
    "constructor: channels type": (
        lambda: SqueezeExcite(6.0),
        TypeError,
        ("channels must be an integer", "float"),
    ),
    "constructor: rd_channels": (
        lambda: SqueezeExcite(6, rd_channels=-2),
        ValueError,
        ("rd_channels must be at least 1", "got -2"),
    ),
    "constructor: rd_channels of 0": (
        lambda: SqueezeExcite(6, rd_channels=0),
        ValueError,
        ("rd_channels must be at least 1", "got 0"),
    ),
    "constructor: rd_ratio": (
        lambda: SqueezeExcite(6, rd_ratio=-1),
        ValueError,
        ("rd_ratio must be positive", "got -1"),
    ),
    "constructor: rd_ratio is not a number": (
        lambda: SqueezeExcite(6, rd_ratio=float("nan")),
        ValueError,
        ("rd_ratio must be positive and finite", "got nan"),
    ),
    "constructor: rd_ratio of another type": (
        lambda: SqueezeExcite(6, rd_ratio="x"),
        TypeError,
        ("rd_ratio must be a number", "got str"),
    ),
    "constructor: add_maxpool": (
        lambda: SqueezeExcite(6, add_maxpool="yes"),
        TypeError,
        ("add_maxpool must be True or False", "got 'yes'"),
    ),
    "constructor: add_maxpool of GatherExcite": (
        lambda: GatherExcite(16, add_maxpool=None),
        TypeError,
        ("add_maxpool must be True or False", "got None"),
    ),
    "constructor: norm_layer": (
        lambda: SqueezeExcite(6, norm_layer=3),
        TypeError,
        ("norm_layer must be a class or a factory", "got int"),
    ),
    "constructor: act_layer is an object": (
        lambda: SqueezeExcite(6, act_layer=torch.nn.ReLU()),
        TypeError,
        ("act_layer must be an activation's name, class or factory", "got a ReLU object"),
    ),
    "constructor: rd_divisor": (
        lambda: SqueezeExcite(6, rd_divisor=0),
        ValueError,
        ("rd_divisor must be at least 1",),
    ),
    "constructor: act_layer": (
        lambda: SqueezeExcite(6, act_layer="rleu"),
        ValueError,
        ("act_layer is not a known activation", "'rleu'"),
    ),
    "constructor: gate_layer": (
        lambda: SqueezeExcite(6, gate_layer=None),
        TypeError,
        ("gate_layer must be", "NoneType"),
    ),
    "eca: x 2-D": (eca(x=X[0, 0]), ValueError, ("x must have shape (N, C, H, W)", "(3, 5)")),
    "eca: x integer": (eca(x=X.int()), TypeError, ("x must have dtype", "torch.int32")),
    "eca: even k": (
        eca(weight=torch.randn(1, 1, 4)),
        ValueError,
        ("weight must have an odd length k", "got 4"),
    ),
    "eca: k of 0": (eca(weight=torch.randn(1, 1, 0)), ValueError, ("weight must", "odd", "got 0")),
    "eca: weight 1-D": (
        eca(weight=torch.randn(3)),
        ValueError,
        ("weight must have shape (1, 1, k) or (6, 1, k)", "x with 6 channels", "got (3,)"),
    ),
    "eca: weights of other channels": (
        eca(weight=torch.randn(5, 1, 3)),
        ValueError,
        ("weight must have shape (1, 1, k) or (6, 1, k)", "got (5, 1, 3)"),
    ),
    "eca: dense convolution": (
        eca(weight=torch.randn(6, 6, 3)),
        ValueError,
        ("weight must have shape", "got (6, 6, 3)"),
    ),
    "eca: wraps around twice": (
        eca(weight=torch.randn(1, 1, 15), padding_mode="circular"),
        ValueError,
        ("length of at most 13 for circular padding of 6 channels", "got 15"),
    ),
    "eca: padding mode": (
        eca(padding_mode="reflect"),
        ValueError,
        ("padding_mode must be 'zeros' or 'circular'", "got 'reflect'"),
    ),
    "eca: weight None": (eca(weight=None), TypeError, ("weight must be a tensor", "NoneType")),
    "eca: weight integer": (
        eca(weight=torch.ones(1, 1, 3).int()),
        TypeError,
        ("weight must have dtype", "int32"),
    ),
    "eca: weight on another device": (
        eca(weight=torch.randn(1, 1, 3, device="meta")),
        ValueError,
        ("weight must be on the device of x (cpu)", "meta"),
    ),
    "eca: mixed dtypes": (
        eca(x=X.half()),
        ValueError,
        ("weight must have the dtype of x (torch.float16) outside autocast", "torch.float32"),
    ),
    "eca: unknown gate": (eca(gate="sigmoud"), ValueError, ("gate is not", "'sigmoud'")),
    "eca: backend": (eca(backend="cuda"), ValueError, ("'cuda' cannot run here",)),
    "eca module: 2-D": (
        lambda: EfficientChannelAttention(6)(X[0, 0]),
        ValueError,
        ("x must have shape (N, C, H, W)",),
    ),
    "eca module: mixed dtypes": (
        lambda: EfficientChannelAttention(6)(X.half()),
        ValueError,
        ("conv.weight must have the dtype of x", "torch.float32"),
    ),
    "eca module: channels of x": (
        lambda: EfficientChannelAttentionNS(7)(X),
        ValueError,
        ("x must have shape (N, 7, H, W)", "got (2, 6, 3, 5)"),
    ),
    "eca constructor: even k": (
        lambda: EfficientChannelAttention(kernel_size=4),
        ValueError,
        ("kernel_size must be odd", "got 4"),
    ),
    "eca constructor: k": (
        lambda: CircularEfficientChannelAttention(kernel_size=-1),
        ValueError,
        ("kernel_size must be at least 1", "got -1"),
    ),
    "eca constructor: k of NS": (
        lambda: EfficientChannelAttentionNS(6, 2),
        ValueError,
        ("kernel_size must be odd", "got 2"),
    ),
    "eca constructor: channels": (
        lambda: EfficientChannelAttention(0),
        ValueError,
        ("channels must be at least 1",),
    ),
    "eca constructor: MLP without channels": (
        lambda: EfficientChannelAttention(use_mlp=True),
        ValueError,
        ("use_mlp needs channels",),
    ),
    "eca constructor: gamma": (
        lambda: adaptive_kernel_size(64, gamma=0),
        ValueError,
        ("gamma must not be 0",),
    ),
    "eca constructor: gate_layer": (
        lambda: EfficientChannelAttention(6, gate_layer="sigmoud"),
        ValueError,
        ("gate_layer is not", "'sigmoud'"),
    ),
    "eca constructor: backend": (
        lambda: CircularEfficientChannelAttention(6, backend="gpu"),
        ValueError,
        ("'gpu'",),
    ),
    "ablations: channels": (lambda: SEVar3(0), ValueError, ("channels must be at least 1",)),
    "ablations: groups": (
        lambda: SEGC(6, 4),
        ValueError,
        ("groups must divide channels (6), got 4",),
    ),
    "explain: not ours": (
        lambda: chattn_cuda.explain(nn.ReLU(), X),
        TypeError,
        ("explain takes a module or function of chattn_cuda", "got ReLU"),
    ),
    "explain: a function": (
        lambda: chattn_cuda.explain(torch.relu, X),
        TypeError,
        ("explain takes", "got relu"),
    ),
    "why_not: unknown": (lambda: backends.why_not("gpu", "cpu"), ValueError, ("'gpu'",)),
}


for _block in BLOCKS.values():
    BAD |= _block.errors


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    action, kind, parts = BAD[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        action()
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.gpu
def test_mixed_real_devices() -> None:
    with pytest.raises(ValueError, match="w1 must be on the device of x"):
        call(x=X.cuda())()


def test_native_module_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("_C.so: undefined symbol: aoti_torch_empty")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ImportError, match="undefined symbol: aoti_torch_empty"):
        _native.module.__wrapped__()


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    backends.forget()
    monkeypatch.setattr(_native, "module", lambda: None)
    yield
    backends.forget()


def test_without_the_native_module_everything_runs(without_native: None) -> None:
    assert backends.select("auto", "cpu") == "reference"
    module = SqueezeExcite(6)
    assert squeeze_excite(**arguments()).shape == module(X).shape == X.shape
    explanation = chattn_cuda.explain(module, X)
    assert explanation.path == "eager" and "no fused backend" in explanation.reasons[0]
    assert "was not built" in explanation.others["cpu"]
    with pytest.raises(ValueError, match="'cpu' cannot run here: .* was not built"):
        squeeze_excite(**arguments(), backend="cpu")


# ---- what is not an error ----------------------------------------------------------------------


def _twice(z: Tensor) -> Tensor:
    return 2 * z


@pytest.mark.parametrize(
    "act",
    [
        nn.PReLU(),
        nn.SELU,
        _twice,
        lambda z: z * 3,
        functools.partial(torch.clamp, min=-1),
        functools.partial(nn.Softplus, 2.0),
        "selu",
        torch.nn.functional.softsign,
    ],
    ids=["module", "class", "function", "lambda", "partial", "partial of a class", "name", "torch"],
)
def test_any_activation_runs_the_formulas(act: Any) -> None:
    y = squeeze_excite(**arguments(), act=act)
    assert y.shape == (2, 6, 3, 5)
    explanation = chattn_cuda.explain(squeeze_excite, *arguments().values(), act=act)
    assert explanation.path == "reference" and "act" in explanation.reasons[0]


@pytest.mark.parametrize(
    ("spec", "name", "param"),
    [
        ("ReLU", "relu", 0.0),
        ("swish", "silu", 0.0),
        ("hardswish", "hard_swish", 0.0),
        ("leaky_relu", "leaky_relu", 0.01),
        (nn.ReLU, "relu", 0.0),
        (nn.ReLU(inplace=True), "relu", 0.0),
        (nn.LeakyReLU(0.2), "leaky_relu", 0.2),
        (nn.ELU(0.5), "elu", 0.5),
        (nn.GELU(approximate="tanh"), "gelu_tanh", 0.0),
        (nn.GELU(), "gelu", 0.0),
        (functools.partial(nn.LeakyReLU, negative_slope=0.3), "leaky_relu", 0.3),
        (functools.partial(nn.GELU, approximate="tanh"), "gelu_tanh", 0.0),
        (torch.nn.functional.silu, "silu", 0.0),
        (torch.sigmoid, "sigmoid", 0.0),
    ],
)
def test_specifications_that_the_kernels_know(spec: Any, name: str, param: float) -> None:
    found = activations.resolve(spec)
    assert found is not None and (found[0].name, found[1]) == (name, param)


def test_explanations() -> None:
    inputs = arguments().values()
    explanation = chattn_cuda.explain(squeeze_excite, *inputs, backend="cuda")
    assert explanation.path == "error" and explanation.backend is None
    assert "cannot run here" in explanation.reasons[0]
    explanation = chattn_cuda.explain(squeeze_excite, *inputs, backend="reference")
    assert (explanation.path, explanation.backend) == ("reference", "reference")
    explanation = chattn_cuda.explain(squeeze_excite, *inputs)
    assert explanation.backend == backends.select("auto", "cpu")
    assert explanation.backend not in explanation.others
    assert "x is on 'cpu'" in explanation.others["cuda"]
    assert f"backend {explanation.backend}" in str(explanation)
    assert "not cuda: " in str(explanation)


def test_other_dtypes_and_devices_have_a_backend() -> None:
    assert backends.select("auto", "meta") == "reference"
    assert backends.select("auto", "cpu", torch.float64) == backends.select("auto", "cpu")
    assert backends.select("auto", "cpu", torch.float8_e5m2) == "reference"


def test_explain_says_that_the_native_module_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("chattn_cuda._C was built but does not load: undefined symbol: _Zxyz")

    monkeypatch.setattr(_native, "module", broken)
    backends.forget()
    try:
        found = chattn_cuda.explain(SqueezeExcite(4, backend="reference"), torch.ones(1, 4, 2, 2))
        assert found.backend == "reference" and "_Zxyz" in found.others["cpu"]
        found = chattn_cuda.explain(SqueezeExcite(4, backend="cpu"), torch.ones(1, 4, 2, 2))
        assert found.path == "error" and "_Zxyz" in found.reasons[0]
    finally:
        backends.forget()
