"""What somebody new to the package is told: the model's report, explanations, errors, warnings."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, backends, explain, modules, restore
from chattn_cuda.modules import SqueezeExcite

timm = pytest.importorskip("timm", reason="timm is not installed")
FUSED = backends.select("auto", "cpu") != "reference"


def model(blocks: int = 5) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)]
    return nn.Sequential(*layers, *(timm.layers.SEModule(16) for _ in range(blocks)))


# ---- the report ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [accelerate, restore])
def test_a_report_is_no_model(function: Any) -> None:
    report: Any = function(model())
    hint = rf"{function.__name__}\(model\) works in place"
    with pytest.raises(TypeError, match=hint):
        report(torch.randn(1, 3, 4, 4))
    for name in ("eval", "to", "parameters", "state_dict"):
        with pytest.raises(AttributeError, match=hint):
            getattr(report, name)
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        report.nonsense()


def test_a_backend_that_cannot_run_is_in_the_report() -> None:
    text = str(accelerate(model(), "triton" if torch.cuda.is_available() else "cuda"))
    assert "cannot run where the model is now: " in text
    assert "cannot run" not in str(accelerate(model(), "reference"))
    with torch.device("meta"):
        assert "cannot run" not in str(accelerate(model(), "cuda"))


def test_the_report_says_what_needs_restore() -> None:
    m = model()
    for report in (accelerate(m), accelerate(m)):
        assert "pruning needs chattn_cuda.restore(model) first" in str(report)
    assert "restore(model) first" not in str(restore(m)) + str(accelerate(nn.ReLU()))


def test_what_was_accelerated_before_is_no_leftover() -> None:
    m = model()
    accelerate(m)
    text = str(accelerate(m, "cpu"))
    assert text.startswith("0 modules accelerated, 5 had been before\n") and "left" not in text
    assert "backend is now 'cpu'" in text


def test_elided_names_have_a_place() -> None:
    m = nn.Sequential(model(), *(timm.layers.SEModule(16, act_layer="prelu") for _ in range(4)))
    text = str(accelerate(m))
    assert "... (5; all are in report.changed)" in text
    assert "... (4; all are in report.left)" in text
    assert "(5; all are in report.again)" in str(accelerate(m))


# ---- explanations --------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["seresnet18", "ecaresnet26t", "skresnet18", "resnest14d"])
def test_a_model_is_explained_call_by_call(name: str, training: bool) -> None:
    m = timm.create_model(name, num_classes=3).train(training)
    before = {k: v.clone() for k, v in m.named_buffers()}
    changed = {e.name for e in accelerate(m, fuse="block").changed}
    state = torch.get_rng_state()
    explanation = explain(m, torch.randn(2, 3, 64, 64, generator=torch.Generator()))
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(explanation, chattn_cuda.ModelExplanation)
    names = [name for name, _ in explanation.calls]
    assert set(names) == {n for n in changed if not n.endswith(".attn")} and len(names) > 3
    assert {e.path for _, e in explanation.calls} == {"fused" if FUSED else "eager"}
    assert all(torch.equal(before[k], v) for k, v in m.named_buffers())
    assert not torch.nn.modules.module._has_any_global_hook()
    assert str(explanation).splitlines()[0].startswith(", ".join(names[:2]))


def test_an_explanation_names_the_class() -> None:
    x = torch.randn(1, 16, 4, 4)
    text = str(explain(accelerate(timm.layers.SEModule(16)).model, x))
    assert text.startswith("SqueezeExcite (SEModule): ")
    assert str(explain(SqueezeExcite(16), x)).startswith("SqueezeExcite: ")


class Named(nn.Module):
    """Calls its blocks by names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = timm.layers.SEModule(16), torchvision.ops.SqueezeExcitation(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(input=self.one(x=x))


def test_calls_by_name_are_explained() -> None:
    model, x = accelerate(Named()).model, torch.randn(2, 16, 4, 4)
    explanation = explain(model, x)
    assert isinstance(explanation, chattn_cuda.ModelExplanation)
    assert [name for name, _ in explanation.calls] == ["one", "two"]
    assert explain(model.two, input=x) == explain(model.two, x)


def test_a_map_without_samples_is_explained() -> None:
    block = accelerate(torchvision.ops.SqueezeExcitation(16, 4)).model
    explanation = explain(block, torch.randn(16, 4, 4))
    assert isinstance(explanation, chattn_cuda.Explanation) and explanation.path == "eager"
    assert explanation.reasons == ("x has no axis of samples",)


@pytest.mark.skipif(not FUSED, reason="no fused backend for the CPU")
@pytest.mark.parametrize("kind", ["SEModule", "EffectiveSEModule", "EcaModule"])
def test_a_map_with_gaps_is_not_copied_in_inference(kind: str) -> None:
    """The layers read it as it is, from the first call on; a named backend insists."""
    m = getattr(timm.layers, kind)(16)
    whole = torch.randn(2, 32, 5, 5)
    dense, gaps = whole[:, :16].contiguous(), whole[:, :16]
    rows = dense.contiguous(memory_format=torch.channels_last)
    expected = m(dense)
    for backend, inference, taken in (("auto", True, 2), ("cpu", True, 3), ("auto", False, 3)):
        accelerate(m, backend)
        with torch.set_grad_enabled(not inference):
            for _ in range(2):  # the second call is a remembered one
                for x in (dense, rows, gaps):
                    torch.testing.assert_close(m(x), expected)
            paths = [explain(m, x).path for x in (dense, rows, gaps)]
        assert paths.count("fused") == taken


def test_what_holds_no_block_is_not_explained() -> None:
    with pytest.raises(TypeError, match="or a model that holds such modules; got Sequential"):
        explain(nn.Sequential(nn.ReLU()), torch.randn(1, 2))


def test_a_named_backend_that_does_not_cover_the_call() -> None:
    text = str(
        explain(SqueezeExcite(16, act_layer="prelu", backend="cpu"), torch.ones(1, 16, 2, 2))
    )
    assert "backend='cpu' was asked for, and does not cover this call" in text


# ---- errors and warnings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        modules.SqueezeExcite(16),
        modules.EffectiveSqueezeExcite(16),
        modules.SEVar3(16),
        modules.SqueezeExciteCl(16),
        modules.EfficientChannelAttentionNS(16),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_map_without_a_batch(module: nn.Module) -> None:
    for shape in ((15, 8, 7), (2, 3, 4, 5, 15)):
        with pytest.raises(ValueError, match="must have shape") as error:
            module(torch.randn(shape))
        assert str(error.value).endswith(f"got {shape}")


@pytest.mark.parametrize("accelerated", [True, False])
def test_batch_statistics_of_one_sample(accelerated: bool) -> None:
    own: Any = timm.layers.SEModule if accelerated else SqueezeExcite
    module = own(16, norm_layer=nn.BatchNorm2d)
    accelerate(module)
    x = torch.randn(1, 16, 4, 4)
    with pytest.raises(ValueError, match="bn cannot normalise with the statistics of one sample"):
        module(x)
    module.eval()(x), module.train()(torch.cat([x, x]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SqueezeExcite(64, 16),
        lambda: modules.SqueezeExciteCl(64, 16),
        lambda: modules.GatherExcite(64, rd_ratio=16),
        lambda: modules.EfficientChannelAttention(64, rd_ratio=8, use_mlp=True),
        lambda: modules.SelectiveKernel(64, rd_ratio=16),
        lambda: modules.SplitAttn(64, rd_ratio=4),
    ],
    ids=["SE", "Cl", "GE", "ECA", "SK", "SplitAttn"],
)
def test_a_divisor_in_place_of_a_ratio(make: Any) -> None:
    with pytest.warns(UserWarning, match="it is a factor, such as 0.0625, not a divisor"):
        make()


def test_a_ratio_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SqueezeExcite(64, 1 / 16), SqueezeExcite(64, 1.0), SqueezeExcite(64, rd_channels=128)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("own", [True, False])
def test_a_quantised_map(own: bool) -> None:
    x = torch.quantize_per_tensor(torch.randn(1, 16, 3, 3), 0.1, 0, torch.qint8)
    module = SqueezeExcite(16) if own else accelerate(timm.layers.SEModule(16)).model

    def call(x: Tensor) -> Any:
        return module(x)

    with pytest.raises(TypeError, match=r"it is quantised. Call chattn_cuda.restore\(model\)"):
        call(x)


def test_tails_that_are_undone_are_named() -> None:
    model = timm.create_model("test_resnet", block_args={"attn_layer": "se"})
    blocks = len(accelerate(model).changed)
    report = accelerate(model, fuse="block")
    undone = [e for e in report.again if e.note == "its batch norms run by its layers again"]
    assert 0 < len(undone) < blocks and str(report).count("by its layers again") >= 1
    assert not accelerate(model, fuse="block").changed


def test_a_model_for_several_devices_is_explained() -> None:
    """Its hooks and buckets are no business of the blocks'."""
    model = nn.DataParallel(nn.Sequential(SqueezeExcite(8)))
    assert len(explain(model, torch.randn(2, 8, 4, 4)).calls) == 1
