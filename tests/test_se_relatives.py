"""The relatives of SE: timm's modules with their state_dicts both ways, the formulas in float64."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import functional, modules

timm = pytest.importorskip("timm", reason="timm is not installed")
SqueezeExciteCl = timm.layers.squeeze_excite.SqueezeExciteCl


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (x + torch.randn(1, shape[1], *[1] * (len(shape) - 2), generator=generator)).to(dtype)


def run(module: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Output and gradients of x and of the parameters, in one order."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(leaf)
    y.sin().sum().backward()
    parameters = dict(module.named_parameters()) if isinstance(module, nn.Module) else {}
    grads = [p.grad for _, p in sorted(parameters.items())]
    for p in parameters.values():
        p.grad = None
    return [y.detach(), leaf.grad, *grads]


def assert_same(actual: Any, expected: Any) -> None:
    """In float64 there is nothing but rounding."""
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_constructor_of_gather_excite_is_timms() -> None:
    both = (modules.GatherExcite, timm.layers.GatherExcite)
    ours, theirs = ([*inspect.signature(c.__init__).parameters.values()] for c in both)
    assert [(p.name, p.default) for p in ours[:-1]] == [(p.name, p.default) for p in theirs]
    assert (ours[-1].name, ours[-1].kind) == ("backend", inspect.Parameter.KEYWORD_ONLY)


def test_effective_se_takes_the_keywords_that_timm_ignores() -> None:
    assert modules.EffectiveSqueezeExcite(8, rd_ratio=0.25).fc.weight.shape == (8, 8, 1, 1)


def test_nhwc_tensor_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spy(block: str, backend: str, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return x, x

    monkeypatch.setattr(functional, "run", spy)
    x = maps(2, 5, 7, 24, dtype=torch.float32)
    module = modules.SqueezeExciteCl(24, backend="reference")
    y = module(x)
    assert seen[0].data_ptr() == x.data_ptr() == y.data_ptr()
    assert seen[0].shape == (2, 24, 5, 7) and y.shape == x.shape


# ---- other ranks -------------------------------------------------------------------------------

FLAT = {
    "1-D": ((2, 24, 35), lambda x: x),
    "1-D transposed": ((2, 24, 35), lambda x: x.mT.contiguous().mT),
    "3-D": ((2, 24, 3, 5, 7), lambda x: x),
    "3-D channels_last": (
        (2, 24, 3, 5, 7),
        lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    ),
    "3-D slice": ((2, 24, 3, 5, 7), lambda x: F.pad(x, (0, 2))[..., :-2]),
}
OF_ANY_RANK = {
    "se": functools.partial(modules.SqueezeExcite, rd_channels=6, dtype=torch.float64),
    "ese": functools.partial(modules.EffectiveSqueezeExcite, dtype=torch.float64),
    "eca": functools.partial(modules.EfficientChannelAttention, dtype=torch.float64),
    "scale-bias": functools.partial(
        modules.SqueezeExciteScaleBias, rd_channels=6, dtype=torch.float64
    ),
    "ge": functools.partial(modules.GatherExcite, rd_channels=6, dtype=torch.float64),
    "var1": lambda channels: modules.SEVar1(),
    "var3": lambda channels: modules.SEVar3(channels).double(),
}


@pytest.mark.parametrize("build", OF_ANY_RANK.values(), ids=list(OF_ANY_RANK))
@pytest.mark.parametrize(("shape", "layout"), FLAT.values(), ids=list(FLAT))
def test_other_ranks_are_maps(shape: tuple[int, ...], layout: Any, build: Any) -> None:
    torch.manual_seed(0)
    module = build(24)
    x = layout(maps(*shape))
    flat = maps(*shape).flatten(2)[:, :, None]
    (y, dx, *grads), (y_, dx_, *grads_) = run(module, x), run(module, flat)
    assert y.shape == dx.shape == x.shape
    assert_same([y.flatten(2), dx.flatten(2), *grads], [y_.flatten(2), dx_.flatten(2), *grads_])
    explanation = chattn_cuda.explain(module, x)
    assert explanation.path == chattn_cuda.explain(module, flat).path


@pytest.mark.parametrize("name", ["1-D", "1-D transposed", "3-D", "3-D channels_last"])
def test_other_ranks_are_views(name: str) -> None:
    shape, layout = FLAT[name]
    x = layout(maps(*shape))
    m = functional.to_map(x)
    assert m.dim() == 4 and m.data_ptr() == x.data_ptr()
    back = functional.from_map(m, x)
    assert back.data_ptr() == x.data_ptr() and back.stride() == x.stride()
    y = modules.SqueezeExcite(24, dtype=torch.float64)(x)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("shape", [(2, 35, 24), (2, 5, 7, 24), (2, 3, 5, 7, 24)], ids=str)
def test_channels_in_the_last_dimension(shape: tuple[int, ...]) -> None:
    x = maps(*shape)
    w1, b1, w2, b2 = maps(6, 24), maps(1, 6)[0], maps(24, 6), maps(1, 24)[0]
    first = x.movedim(-1, 1)
    calls: dict[str, Callable[..., Any]] = {
        "se": functools.partial(functional.squeeze_excite, w1=w1, b1=b1, w2=w2, b2=b2),
        "ese": functools.partial(functional.effective_squeeze_excite, weight=maps(24, 24)),
        "eca": functools.partial(functional.efficient_channel_attention, weight=maps(1, 1, 3)),
        "scale-bias": functools.partial(
            functional.squeeze_excite_scale_bias, w1=w1, b1=b1, w2=maps(48, 6), b2=None
        ),
    }
    for call in calls.values():
        y, gate = call(x, channel_dim=-1, return_gate=True)
        expected, expected_gate = call(first, return_gate=True)
        assert_same((y.movedim(-1, 1), gate), (expected, expected_gate))
        assert y.is_contiguous()


def test_cl_of_other_ranks() -> None:
    torch.manual_seed(0)
    module = modules.SqueezeExciteCl(24, rd_channels=6, dtype=torch.float64)
    x = maps(2, 5, 7, 24)
    expected = module(x)
    assert_same(module(x.flatten(1, 2)), expected.flatten(1, 2))
    assert_same(module(x.unflatten(1, (5, 1))), expected.unflatten(1, (5, 1)))
    module.fc1.register_forward_hook(lambda *args: None)
    assert chattn_cuda.explain(module, x.flatten(1, 2)).path == "eager"
    assert_same(module(x.flatten(1, 2)), expected.flatten(1, 2))


# ---- formulas ----------------------------------------------------------------------------------


def test_scale_and_bias_by_hand() -> None:
    x = torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]])  # means 2 and -1
    w1 = torch.tensor([[1.0, 1.0]])  # hidden: 1
    w2 = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
    b2 = torch.tensor([0.0, -1.0, 0.0, 0.5])  # scale 1/2 and 1/2, bias 3 and 4.5
    y = functional.squeeze_excite_scale_bias(x, w1, None, w2, b2)
    assert y.tolist() == [[[[3.5, 4.5]], [[3.5, 4.5]]]]


def test_scale_bias_module() -> None:
    torch.manual_seed(0)
    module = modules.SqueezeExciteScaleBias(24, 6, act_layer="mish", dtype=torch.float64)
    x = maps(2, 24, 5, 7)
    fc1, fc2 = module.fc1, module.fc2
    expected = functional.squeeze_excite_scale_bias(
        x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, act="mish"
    )
    assert_same(module(x), expected)
    for explanation in (
        chattn_cuda.explain(module, x),
        chattn_cuda.explain(
            functional.squeeze_excite_scale_bias, x, fc1.weight, None, fc2.weight, None
        ),
    ):
        assert explanation.backend == "reference"
        assert "no gate with a scale and a bias" in explanation.reasons[0]


def test_gather_excite_is_se() -> None:
    torch.manual_seed(0)
    ge = modules.GatherExcite(24, rd_channels=6, add_maxpool=True, dtype=torch.float64)
    se = timm.layers.SEModule(24, rd_channels=6, add_maxpool=True, dtype=torch.float64)
    state = {k.removeprefix("mlp."): v for k, v in ge.state_dict().items()}
    se.load_state_dict(state)
    assert set(ge.state_dict()) == {f"mlp.{k}" for k in se.state_dict()}
    x = maps(2, 24, 5, 7)
    assert_same(run(ge, x), run(se, x))
    for wrong in ({"extent": 2}, {"extra_params": True}, {"use_mlp": False}):
        with pytest.raises(ValueError, match="extent=0"):
            modules.GatherExcite(24, **wrong)


def test_spatial_and_channel() -> None:
    torch.manual_seed(0)
    module = modules.SpatialChannelSqueezeExcite(24, reduction=4).double()
    assert list(module.state_dict()) == [
        "cSE.1.weight", "cSE.1.bias", "cSE.3.weight", "cSE.3.bias", "sSE.0.weight", "sSE.0.bias",
    ]  # fmt: skip
    x = maps(2, 24, 5, 7)
    results = run(module, x)
    assert (
        chattn_cuda.explain(module, x).path
        == chattn_cuda.explain(modules.SqueezeExcite(24).double(), x).path
    )
    module.cSE[1].register_forward_hook(lambda *args: None)
    assert chattn_cuda.explain(module, x).path == "eager"
    assert_same(results, run(module, x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: modules.EffectiveSqueezeExcite(0), "channels must be at least 1"),
        (lambda: modules.SqueezeExciteCl(8, rd_channels=-1), "rd_channels must be at least 1"),
        (lambda: modules.SqueezeExciteScaleBias(8, 0), "rd_channels must be at least 1"),
        (lambda: modules.SpatialChannelSqueezeExcite(8), "in_channels // reduction"),
        (lambda: modules.SqueezeExciteCl(8)(torch.randn(2, 8, 3, 3)), "(N, H, W, 8)"),
        (lambda: modules.EffectiveSqueezeExcite(8)(torch.randn(2, 8)), "(N, 8, L)"),
        (
            lambda: functional.effective_squeeze_excite(torch.randn(2, 8, 3), torch.randn(8, 7)),
            "weight must have shape (8, 8) or (8, 8, 1, 1), got (8, 7)",
        ),
        (
            lambda: functional.effective_squeeze_excite(
                torch.randn(2, 8, 3), torch.randn(8, 8), torch.randn(7)
            ),
            "bias must have shape (8,)",
        ),
        (
            lambda: functional.squeeze_excite_scale_bias(
                torch.randn(2, 8, 3), torch.randn(2, 8), None, torch.randn(8, 2), None
            ),
            "w2 must have shape (16, 2) or (16, 2, 1, 1), got (8, 2)",
        ),
    ],
    ids=range(9),
)
def test_bad_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
