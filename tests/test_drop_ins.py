"""Our modules in the place of other libraries': constructors, keys, results, what is left alone."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import accelerate, explain, modules, parity, restore
from tests import cases, exported
from tests.cases.block import DropIn
from tests.test_modules import FUSED

DROP_INS = {
    drop_in.ours: drop_in
    for block in cases.BLOCKS.values()
    for drop_in in block.drop_ins
    if importlib.util.find_spec(drop_in.library) is not None
}
every = pytest.mark.parametrize("drop_in", DROP_INS.values(), ids=list(DROP_INS))
every_setting = pytest.mark.parametrize(
    ("drop_in", "keywords"),
    [
        pytest.param(drop_in, keywords, id=f"{name}-{keywords}")
        for name, drop_in in DROP_INS.items()
        for keywords in drop_in.settings
    ],
)
every_obstacle = pytest.mark.parametrize(
    ("drop_in", "obstacle"),
    [
        pytest.param(drop_in, obstacle, id=f"{name}-{obstacle}")
        for name, drop_in in DROP_INS.items()
        for obstacle in drop_in.obstacles
    ],
)


def pair(drop_in: DropIn, keywords: dict[str, Any], device: str = "cpu") -> tuple[Any, Any]:
    """Our module and theirs, with the same weights, none of which is zero."""
    how = {**keywords, "device": device, "dtype": torch.float64}
    ours, theirs = getattr(modules, drop_in.ours)(24, **how), drop_in.load()(24, **how)
    parity._randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def map_for(module: nn.Module, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 24, 5, 7, generator=generator, dtype=torch.float64).to(device)
    return x if exported.channel_dim(module) == 1 else x.permute(0, 2, 3, 1).contiguous()


def run(module: Any, x: Tensor) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    y = module(leaf)
    return [y, *torch.autograd.grad(y.sin().sum(), (leaf, *module.parameters()))]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@every
def test_constructor_is_theirs(drop_in: DropIn) -> None:
    both = (getattr(modules, drop_in.ours), drop_in.load())
    ours, theirs = (dict(inspect.signature(cls.__init__).parameters) for cls in both)
    backend = ours.pop("backend")
    assert backend.kind is inspect.Parameter.KEYWORD_ONLY and backend.default == "auto"
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind), name


@every_setting
def test_parameters_and_initialisation_are_theirs(
    drop_in: DropIn, keywords: dict[str, Any]
) -> None:
    states = []
    for cls in (getattr(modules, drop_in.ours), drop_in.load()):
        torch.manual_seed(3)
        states.append(cls(24, **keywords).state_dict())
    assert list(states[0]) == list(states[1])
    torch.testing.assert_close(*map(dict, states), rtol=0, atol=0)


@pytest.mark.parametrize("backend", [*cases.fused_backends(), "reference"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@every_setting
def test_trains_like_theirs(
    drop_in: DropIn, keywords: dict[str, Any], layout: str, backend: str
) -> None:
    """And so does theirs, accelerated."""
    cases.require(backend)
    ours, theirs = pair(drop_in, keywords, cases.device_of(backend))
    x = cases.LAYOUTS[layout](map_for(ours, cases.device_of(backend)))
    with parity._exact_hard_sigmoids(theirs):
        expected = run(theirs, x)
    ours.backend = backend
    for module in (ours, accelerate(theirs, backend).model):
        for _ in range(2):  # the second call is one that was checked before
            actual = run(module, x)
            assert_same(actual, expected)
        assert explain(module, x).backend == backend
        if exported.channel_dim(ours) == 1:  # a permuted NHWC tensor comes back dense
            assert actual[0].stride() == expected[0].stride()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@every_setting
def test_scripted_is_theirs(drop_in: DropIn, keywords: dict[str, Any]) -> None:
    ours, theirs = pair(drop_in, keywords)
    x = map_for(ours)
    assert_same([torch.jit.script(ours)(x)], [theirs(x)])


@every_obstacle
def test_what_was_changed_is_left_alone(drop_in: DropIn, obstacle: str) -> None:
    _, theirs = pair(drop_in, {})
    for name, value in drop_in.obstacles[obstacle].items():
        setattr(theirs, name, value)
    assert [entry.note for entry in accelerate(theirs).left] == [obstacle]


@every_obstacle
def test_what_changes_later_runs_theirs(drop_in: DropIn, obstacle: str) -> None:
    _, theirs = pair(drop_in, {})
    x = map_for(theirs)
    assert accelerate(theirs).changed
    theirs(x)  # is remembered
    assert not FUSED or explain(theirs, x).path == "fused"
    for name, value in drop_in.obstacles[obstacle].items():
        setattr(theirs, name, value)
    y, explanation = theirs(x), explain(theirs, x)
    assert explanation.path == "eager" and obstacle in explanation.reasons[0]
    restore(theirs)
    assert torch.equal(theirs(x), y)
