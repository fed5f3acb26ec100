"""`accelerate` and `restore`: what they change, what they leave, and that a model stays itself."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, restore

timm = pytest.importorskip("timm", reason="timm is not installed")
SEModule, EcaModule, CecaModule = (
    timm.layers.SEModule,
    timm.layers.EcaModule,
    timm.layers.CecaModule,
)


class OwnForward(SEModule):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class OnlyDefaults(SEModule):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, rd_channels=4, gate_layer="hard_sigmoid")


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.se = SEModule(16)
        self.bn = nn.BatchNorm2d(16)
        self.more = nn.Sequential(SEModule(16, act_layer="silu"), nn.ReLU(), OnlyDefaults(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self.bn(self.se(self.conv(x))))


def image() -> Tensor:
    return torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))


def train_step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    y = model(x)
    y.sin().sum().backward()
    return y, {k: p.grad.clone() for k, p in model.named_parameters()}


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_model_stays_itself_and_gives_the_same() -> None:
    torch.manual_seed(0)
    model = Tower()
    plain = copy.deepcopy(model)
    parameters, keys = list(model.parameters()), list(model.state_dict())
    calls: list[str] = []
    model.se.register_forward_hook(lambda *args: calls.append("se"))

    report = accelerate(model)
    assert report.model is model
    assert [e.name for e in report.changed] == ["se", "more.0", "more.2"] and not report.left
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    assert isinstance(model.se, SEModule) and isinstance(model.more[2], OnlyDefaults)
    assert_same(train_step(model, image()), train_step(plain, image()))
    assert calls == ["se"]
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())

    report = restore(model)
    assert [e.name for e in report.changed] == ["se", "more.0", "more.2"]
    assert type(model.se) is SEModule and type(model.more[2]) is OnlyDefaults
    assert "_backend" not in model.se.__dict__
    assert_same(train_step(model, image()), train_step(plain, image()))
    assert restore(model).changed == ()


@pytest.mark.parametrize(
    "name", ["seresnet18", "seresnext26t_32x4d", "rexnet_100", "regnety_002", "ecaresnet26t"]
)
def test_timm_models(name: str) -> None:
    model = timm.create_model(name, num_classes=7).eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    known = [n for n, m in model.named_modules() if isinstance(m, (SEModule, EcaModule))]
    assert known
    with torch.no_grad():
        expected = model(x)
        report = accelerate(model, fuse="block")
        assert [e.name for e in report.changed] == known
        assert_same(model(x), expected)
        report = accelerate(model)
        assert {e.name for e in report.again} == set(known) and report.changed
        assert_same(model(x), expected)
        restore(model)
        assert_same(model(x), expected)


def test_report_says_what_was_left_and_why() -> None:
    model = nn.ModuleDict(
        {
            "good": SEModule(16),
            "prelu": SEModule(16, act_layer="prelu"),
            "own": OwnForward(16),
            "gate": SEModule(16, gate_layer="silu"),
            "norm": SEModule(16, norm_layer=lambda c, **dd: nn.GroupNorm(1, c, **dd)),
            "lora": SEModule(16),
            "patched": SEModule(16),
            "other": timm.layers.EffectiveSEModule(16),
            "eca": EcaModule(16),
            "ceca": CecaModule(16),
            "mlp": EcaModule(16, use_mlp=True),
            "bias": CecaModule(16, act_layer=nn.ReLU),
            "hard": EcaModule(16, gate_layer="silu"),
            "dense": EcaModule(16),
        }
    )
    model["lora"].fc1 = nn.Sequential(model["lora"].fc1)
    model["patched"].forward = lambda x: x
    model["dense"].conv = nn.Sequential(model["dense"].conv)
    report = accelerate(model)
    assert [e.name for e in report.changed] == ["good", "other", "eca", "ceca"]
    notes = {e.name: e.note for e in report.left}
    expected = {
        "prelu": "act (PReLU)",
        "own": "overrides the forward of SEModule",
        "gate": "gate (SiLU)",
        "norm": "bn is a GroupNorm",
        "lora": "fc1 is a Sequential",
        "patched": "a forward of its own",
        "mlp": "gate with an MLP",
        "bias": "conv has a bias",
        "hard": "gate (SiLU)",
        "dense": "conv is a Sequential",
    }
    assert set(notes) == set(expected)
    for name, part in expected.items():
        assert part in notes[name]
    text = str(report)
    assert "4 modules accelerated, 10 left" in text and "PReLU" in text and "good" in text
    assert type(model["own"]) is OwnForward


def test_batch_statistics_are_seen_at_run_time() -> None:
    model = accelerate(SEModule(16, norm_layer=nn.BatchNorm2d)).model
    x = torch.randn(3, 16, 4, 4)
    assert chattn_cuda.explain(model, x).path == "eager"
    model.eval()
    assert chattn_cuda.explain(model, x).path != "error"


def test_twice_changes_the_backend_only() -> None:
    model = Tower()
    accelerate(model)
    cls = type(model.se)
    report = accelerate(model, backend="reference")
    assert not report.changed and not report.left and len(report.again) == 3
    assert str(report).startswith("0 modules accelerated, 3 had been before\n  before: ")
    assert "backend is now 'reference'" in str(report)
    assert type(model.se) is cls and model.se.backend == "reference"
    restore(model)
    assert type(model.se) is SEModule


def test_a_class_that_was_made_from_an_accelerated_one_is_named() -> None:
    """As by fully_shard, and by parametrizations of a block's own parameters."""
    sharded: Any = SEModule(16)
    norm: Any = timm.layers.grn.GlobalResponseNorm(16, channels_last=False)
    model = accelerate(nn.Sequential(sharded, norm)).model
    sharded.__class__ = type("FSDPBlock", (type(sharded),), {})
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Identity())
    for act, end in ((accelerate, "its backend stays"), (restore, "undo that first")):
        report = act(model)
        assert not report.changed and [e.name for e in report.left] == ["0", "1"]
        assert "its class was made from Accelerated" in str(report) and end in str(report)
    nn.utils.parametrize.remove_parametrizations(norm, "weight")
    assert [e.name for e in restore(model).changed] == ["1"]


def test_shared_modules_are_changed_once() -> None:
    shared = SEModule(16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert [e.name for e in accelerate(model).changed] == ["0"]
    assert model[0] is model[2]
    assert len(restore(model).changed) == 1


def test_the_model_may_be_the_block_itself() -> None:
    report = accelerate(SEModule(16))
    assert report.changed[0].name == "" and "(the model itself)" in str(report)
    assert report.model(torch.randn(1, 16, 3, 3)).shape == (1, 16, 3, 3)


def test_nothing_to_do() -> None:
    report = accelerate(nn.Linear(2, 2))
    assert not report.changed and not report.left
    assert "0 modules accelerated: Linear holds no channel attention block" in str(report)


def test_own_modules_are_not_touched() -> None:
    model = nn.Sequential(chattn_cuda.SqueezeExcite(16))
    assert not accelerate(model).changed
    assert type(model[0]) is chattn_cuda.SqueezeExcite


@pytest.mark.parametrize("call", [accelerate, restore])
@pytest.mark.parametrize("model", [None, "seresnet50", torch.zeros(1), nn.ReLU])
def test_not_a_module(call: Any, model: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got "):
        call(model)


def test_unknown_backend_changes_nothing() -> None:
    model = Tower()
    with pytest.raises(ValueError, match="backend must be one of"):
        accelerate(model, backend="gpu")
    assert type(model.se) is SEModule


def test_backend_that_cannot_run_is_an_error_when_called() -> None:
    if torch.cuda.is_available():
        pytest.skip("here it can run")
    model = accelerate(SEModule(16), backend="cuda").model
    with pytest.raises(ValueError, match="backend 'cuda' cannot run here"):
        model(torch.randn(1, 16, 3, 3))


def test_copies_and_pickles_of_a_model() -> None:
    torch.manual_seed(0)
    model = Tower().eval()
    expected = model(image()).detach()
    accelerate(model, backend="reference")
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(other.se) is type(model.se) and other.se.backend == "reference"
        assert_same(other(image()).detach(), expected)
        assert len(restore(other).changed) == 3
        assert type(other.se) is SEModule and type(model.se) is not SEModule


def test_compiled_model_without_graph_breaks() -> None:
    torch.manual_seed(0)
    model = Tower().eval()
    expected = model(image()).detach()
    torch._dynamo.reset()
    compiled = torch.compile(accelerate(model).model, fullgraph=True, backend="aot_eager")
    y = compiled(image())
    y.sum().backward()
    assert_same(y.detach(), expected)


def test_converted_to_sync_batch_norm() -> None:
    model = accelerate(SEModule(16, norm_layer=nn.BatchNorm2d)).model.eval()
    x = torch.randn(3, 16, 4, 4)
    expected = model(x)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model.bn) is nn.SyncBatchNorm
    assert chattn_cuda.explain(model, x).path != "error"
    torch.testing.assert_close(model.eval()(x), expected)


def test_feature_maps_in_channels_last() -> None:
    model = accelerate(Tower()).model.to(memory_format=torch.channels_last)
    y = model(image().contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_torchvision_without_a_batch() -> None:
    """(C, H, W), which its convolutions take."""
    torchvision = pytest.importorskip("torchvision")
    module = torchvision.ops.SqueezeExcitation(8, 2)
    x = torch.randn(8, 4, 5)
    expected = module(x)
    assert accelerate(module).changed
    torch.testing.assert_close(module(x), expected)
