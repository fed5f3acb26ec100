"""Real models, accelerated, give the numbers that they gave: the list of `verify`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import backends, functional, parity
from chattn_cuda.cli import main
from chattn_cuda.convert import Entry, Report, accelerate
from chattn_cuda.parity import FAMILIES, WITHOUT_ATTENTION, Family, check
from chattn_cuda.peers import PEERS

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
FUSED = backends.select("auto", "cpu", torch.float64) != "reference"
SMALL = Family("timm", "regnety_002", 32)


def class_of(family: Family) -> Any:
    """The class that names the model."""
    (cls,) = (p.load() for p in PEERS if p.library == family.library and family.model in p.models)
    return cls


def blocks(family: Family, entries: Iterable[Entry]) -> int:
    """The blocks among the entries."""
    return sum(e.cls == class_of(family).__name__ for e in entries)


def blocks_of(model: nn.Module, family: Family) -> int:
    """Those that are not accelerated yet."""
    return sum(type(m) is class_of(family) for m in model.modules())


def convolutions(model: nn.Module) -> set[Any]:
    return {(m.weight.shape, m.stride) for m in model.modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_every_block_is_accelerated(family: Family) -> None:
    """Of the whole model, without memory; and the short one has every kind of convolution."""
    # torchvision computes RegNet's sizes with tensors
    device = "cpu" if family.name == "torchvision regnet_y_400mf" else "meta"
    with torch.device(device):
        model = family.build()
    there = blocks_of(model, family)
    report = accelerate(model)
    assert blocks(family, report.changed) == there > 0
    assert not report.left
    kinds, count = convolutions(model), len(list(model.modules()))
    parity._shorten(model)
    assert convolutions(model) == kinds and len(list(model.modules())) <= count


def same_numbers(family: Family, training: bool, short: bool) -> parity.Outcome:
    outcome = check(family, training, channels_last=not training, short=short)
    assert outcome.same, (outcome.errors, outcome.worst)
    assert set(outcome.errors) == {"output", "gradients", *["statistics"] * training}
    assert not outcome.left
    # batch norm inside the gate normalises with the batch in train mode
    if FUSED and not (training and family.name == "rexnet_100"):
        assert outcome.fused == len(outcome.changed)
    return outcome


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_same_numbers(family: Family, training: bool) -> None:
    """Without the blocks that repeat: there are at least one of every stage."""
    outcome = same_numbers(family, training, short=True)
    assert 4 <= len(outcome.changed)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_same_numbers_of_the_whole_model(family: Family) -> None:
    """In train mode: the blocks that the short ones lack repeat those that they have."""
    outcome = same_numbers(family, True, short=False)
    assert blocks(family, outcome.changed) == blocks_of(family.build(), family)


TAILS = """
seresnet50 regnety_032 rexnet_100 ese_vovnet39b efficientnet_b0 ecaresnet50d skresnet50 resnest50d
mobilenetv3_large_100 repvgg_a0 resnet18
""".split()


@pytest.mark.parametrize(
    "family",
    [f for f in (*FAMILIES, *WITHOUT_ATTENTION) if f.name in TAILS or f.library == "torchvision"],
    ids=lambda f: f.name,
)
def test_same_numbers_by_tails(family: Family) -> None:
    """In training; tests/test_tails.py has the blocks of every kind, in both modes."""
    outcome = check(family, True, channels_last=True, short=True, fuse="tail")
    assert outcome.same, (outcome.errors, outcome.worst)
    assert not outcome.left and any("batch norms" in e.note for e in outcome.changed)


# ---- that the comparison notices ----------------------------------------------------------------


def _wrong(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    right = functional.run

    def wrong(*args: Any) -> tuple[Tensor, Tensor]:
        return change(*right(*args))

    monkeypatch.setattr(functional, "run", wrong)


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy * (1 + 1e-5)


@pytest.mark.skipif(not FUSED, reason="needs a backend with operators")
def test_a_wrong_output_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(SMALL, training=False, fuse="block").same
    _wrong(monkeypatch, lambda y, s: (y * (1 + 1e-6), s))
    outcome = check(SMALL, training=False, fuse="block")
    assert not outcome.same and outcome.errors["output"] > parity.SAME


@pytest.mark.skipif(not FUSED, reason="needs a backend with operators")
def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    _wrong(monkeypatch, lambda y, s: (_WrongGradient.apply(y), s))
    outcome = check(SMALL, training=True, fuse="block")
    assert not outcome.same and outcome.errors["output"] <= parity.SAME
    assert outcome.errors["gradients"] > parity.SAME


@pytest.mark.skipif(not FUSED, reason="needs a backend with operators")
def test_nan_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    _wrong(monkeypatch, lambda y, s: (y * torch.nan, s))
    assert not check(SMALL, training=False, fuse="block").same


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattn_cuda.cli.verify.FAMILIES", (SMALL,))


@pytest.mark.usefixtures("small")
def test_verify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for every model as soon as it is done."""
    printed: list[str] = []

    def check_and_look(*arguments: Any, **options: Any) -> parity.Outcome:
        printed.append(capsys.readouterr().out)
        return check(*arguments, **options)

    monkeypatch.setattr("chattn_cuda.cli.verify.check", check_and_look)
    assert main(["verify", "--threads", "2", "--fuse", "block"]) == 0
    assert "regnety_002" not in printed[0] and "regnety_002  eval   13/13" in printed[1]
    out = printed[1] + capsys.readouterr().out
    assert "2 of 2 agree in float64 to 1e-09" in out
    assert "13/13" in out and "same" in out


def test_verify_short(capsys: pytest.CaptureFixture[str]) -> None:
    """A whole mobilenet has 8 blocks, two of which repeat."""
    assert main(["verify", "torchvision mobilenet_v3_large", "--short", "--fuse=block"]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 agree" in out and "6/6" in out


@pytest.mark.usefixtures("small")
@pytest.mark.skipif(not FUSED, reason="needs a backend with operators")
def test_verify_fails_on_a_mismatch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _wrong(monkeypatch, lambda y, s: (y * (1 + 1e-6), s))
    assert main(["verify", "regnety_002", "--fuse", "block"]) == 1
    out = capsys.readouterr().out
    assert "0 of 2 agree" in out and "output" in out


@pytest.mark.usefixtures("small")
def test_verify_fails_where_nothing_is_accelerated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        parity, "accelerate", lambda model, *_: Report(model, "accelerated", (), ())
    )
    assert main(["verify", "--fuse", "block"]) == 1
    out = capsys.readouterr().out
    assert out.count("nothing was accelerated") == 2 and "0 of 2 agree" in out


@pytest.mark.usefixtures("small")
def test_verify_goes_on_where_a_model_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("out of paper")

    monkeypatch.setattr("chattn_cuda.cli.verify.check", fail)
    assert main(["verify", "--fuse", "block"]) == 1
    out = capsys.readouterr().out
    assert out.count("fails: out of paper") == 2 and "0 of 2 agree" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet51"], "unknown model 'resnet51'; known are seresnet50"),
        (["--backend", "gpu"], "backend must be one of auto"),
        (["--backend", "cuda"], "backend 'cuda' cannot run here"),
        (["--device", "gpu0"], "--device gpu0: no such device"),
        pytest.param(
            ["--device", "cuda"],
            "no usable GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err
