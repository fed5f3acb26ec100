"""Copies, files and state dicts."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

timm = pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

from tests.compat.features import feature  # noqa: E402
from tests.compat.models import assert_same, images, pair  # noqa: E402

SECTION = "Copying and saving"


@feature(SECTION, "`copy.deepcopy`", "yes")
def test_deepcopy() -> None:
    fast, plain = pair()
    other = copy.deepcopy(fast.eval())
    assert [type(m) for m in other.modules()] == [type(m) for m in fast.modules()]
    assert_same(other(images()).detach(), plain.eval()(images()).detach())


@feature(SECTION, "`pickle`, `torch.save` of a model", "yes", "loading needs `chattn_cuda`")
def test_pickle(tmp_path: Path) -> None:
    fast, plain = pair(backend="reference")
    expected = plain.eval()(images()).detach()
    torch.save(fast.eval(), tmp_path / "model.pt")
    others = (
        pickle.loads(pickle.dumps(fast)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    )
    for other in others:
        assert [type(m) for m in other.modules()] == [type(m) for m in fast.modules()]
        assert other.blocks[0].backend == "reference"
        assert_same(other(images()).detach(), expected)


@feature(
    SECTION,
    "state dicts, `torch.load(weights_only=True)`",
    "yes",
    "the keys are those of the model itself, both ways",
)
def test_state_dict(tmp_path: Path) -> None:
    fast, plain = pair()
    with torch.no_grad():
        for p in fast.parameters():
            p.mul_(1.5)
    torch.save(fast.state_dict(), tmp_path / "weights.pt")
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    fast.load_state_dict(plain.state_dict(), strict=True)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert_same(fast.eval()(images()).detach(), plain.eval()(images()).detach())


@feature(SECTION, "safetensors", "yes")
def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    fast, plain = pair()
    with torch.no_grad():
        for p in fast.parameters():
            p.mul_(1.5)
    safetensors.save_model(fast, str(tmp_path / "model.safetensors"))
    safetensors.load_model(plain, str(tmp_path / "model.safetensors"))
    assert_same(plain.eval()(images()).detach(), fast.eval()(images()).detach())


@feature(SECTION, "checkpoints of timm", "yes", "load before or after `accelerate`")
def test_timm_checkpoint(tmp_path: Path) -> None:
    from chattn_cuda import accelerate

    source = timm.create_model("seresnet18", num_classes=5).eval()
    torch.save(source.state_dict(), tmp_path / "seresnet18.pth")
    x = torch.randn(1, 3, 32, 32)
    model = timm.create_model("seresnet18", num_classes=5).eval()
    assert accelerate(model).changed
    timm.models.load_checkpoint(model, str(tmp_path / "seresnet18.pth"))
    assert_same(model(x).detach(), source(x).detach())
    late = timm.create_model(
        "seresnet18", num_classes=5, checkpoint_path=str(tmp_path / "seresnet18.pth")
    )
    accelerate(late)
    assert_same(late.eval()(x).detach(), source(x).detach())
