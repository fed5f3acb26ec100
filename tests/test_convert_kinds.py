"""The ways in which people write channel attention: each is taken, or in the report with a reason.

`tests.kinds` has a class for each.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, backends, restore
from tests.kinds import NAMED, TAKEN
from tests.kinds.gates import OnePlus
from tests.kinds.layers import LinearByHand, Nested, Normed1d, OwnEca, PooledEca
from tests.kinds.others import (
    AsppPooling,
    GlobalContext,
    Glu,
    InstanceNorm,
    MlpHead,
    MultiLabelHead,
    SpatialGate,
    StyleModulation,
)
from tests.kinds.products import SCSEModule, TimesItsGate
from tests.kinds.squeezes import GlobalAvgPool, OwnPool
from tests.test_convert_dataflow import assert_same, maps, run

FUSED = backends.select("auto", "cpu") != "reference"


def _name(value: Any) -> str:
    return getattr(value, "__name__", str(value)).replace("build", "pool")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("build", TAKEN, ids=_name)
def test_taken(build: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    module = build().double().train(training)
    plain, x = copy.deepcopy(module), maps()
    report = accelerate(nn.Sequential(module))
    assert [e.name for e in report.changed] == ["0"] and not report.left, str(report)
    normed = any(isinstance(m, nn.BatchNorm1d) for m in module.modules())
    if FUSED and not (training and normed):
        assert chattn_cuda.explain(module, x).path == "fused"
    if isinstance(plain, PooledEca):
        plain.act = _HardSigmoid()  # torch's has no exact gradient
    assert_same(run(module, x), run(plain, x))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert chattn_cuda.explain(other, x).path == chattn_cuda.explain(module, x).path
        assert_same(other.eval()(x).detach(), plain.eval()(x).detach())
    restore(module)
    assert type(module) is type(plain)


class _HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("build", "reason"), NAMED, ids=_name)
def test_named(build: Callable[[], nn.Module], reason: str) -> None:
    module = build()
    report = accelerate(nn.Sequential(module))
    assert not report.changed and type(module) is type(build())
    assert len(report.left) == 1 and reason in report.left[0].note, str(report)


@pytest.mark.parametrize(
    "build", [OwnPool, Nested, OwnEca, PooledEca, Normed1d, LinearByHand, OnePlus, SCSEModule]
)
def test_compiled_and_exported(build: Callable[[], nn.Module]) -> None:
    torch._dynamo.reset()
    module, x = build().eval(), maps().float()
    expected = module(x).detach()
    accelerate(module)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).detach(), expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x).detach(), expected)


# ---- what changes behind accelerate -------------------------------------------------------------


class AnotherPool(GlobalAvgPool):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


AnotherPool.__qualname__ = GlobalAvgPool.__qualname__  # as a notebook that runs a cell again


def _replace(m: Any) -> None:
    m.pool = AnotherPool()


def _set(m: Any) -> None:
    m.pool.keep = True


def _hook(m: Any) -> None:
    m.pool.register_forward_hook(lambda module, inputs, y: 3 * y)


def _instance(m: Any) -> None:
    m.pool.forward = lambda x: x.amax((2, 3))


@pytest.mark.parametrize("change", [_replace, _set, _hook, _instance])
def test_a_change_inside_is_seen(change: Callable[[Any], None]) -> None:
    module, x = accelerate(OwnPool().double()).model, maps()
    module(x)
    change(module)
    plain = restore(copy.deepcopy(module)).model
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)
    assert chattn_cuda.explain(module, x).path == "eager"


def test_a_patched_class_inside_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = accelerate(OwnPool().double()).model, maps()
    module(x)
    monkeypatch.setattr(GlobalAvgPool, "forward", lambda self, x: x.amax((2, 3)))
    plain = restore(copy.deepcopy(module)).model
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)


def _norm_statistics(m: Any) -> None:
    m.norm.running_mean += 1


def _norm_train(m: Any) -> None:
    m.norm.train()


@pytest.mark.parametrize("change", [_norm_statistics, _norm_train])
def test_a_changed_norm_is_seen(change: Callable[[Any], None]) -> None:
    module, x = accelerate(Normed1d().double().eval()).model, maps()
    module(x)
    change(module)
    plain = restore(copy.deepcopy(module)).model
    torch.testing.assert_close(module(x), plain(x))


def test_a_gate_inside_is_no_block_of_its_own() -> None:
    module = accelerate(TimesItsGate()).model
    report = accelerate(module)
    assert len(report.again) == 1 and not report.left
    assert len(restore(module).changed) == 1


# ---- what is no block ---------------------------------------------------------------------------

MODELS = [
    "resnet50", "efficientnet_b0", "mobilenetv3_large_100", "regnety_032", "convnext_tiny",
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "densenet121", "gmlp_s16_224",
    "focalnet_tiny_srf", "davit_tiny", "halonet26t", "mixer_s16_224", "convnextv2_atto",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_hold_nothing_else(name: str) -> None:
    assert not accelerate(timm.create_model(name)).left


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_segmentation_models_hold_nothing_else(name: str) -> None:
    """Their heads pool and have layers, and the second multiplies by a gate of another map."""
    build = getattr(torchvision.models.segmentation, name)
    assert not accelerate(build(weights=None, weights_backbone=None)).left


@pytest.mark.parametrize(
    "build",
    [MlpHead, AsppPooling, StyleModulation, Glu, SpatialGate, InstanceNorm, GlobalContext,
     MultiLabelHead, lambda: MlpHead(10)],
    ids=_name,
)  # fmt: skip
def test_what_is_no_block(build: Callable[[], nn.Module]) -> None:
    report = accelerate(nn.Sequential(build()))
    assert not report.left and not report.changed
