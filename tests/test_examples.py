"""The examples run, show what they promise, and notice when it is not so."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import chattn_cuda

ROOT = Path(__file__).parent.parent

for name in ("timm", "sklearn", "matplotlib"):
    pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def digits() -> Any:
    spec = importlib.util.spec_from_file_location(
        "train_digits", ROOT / "examples" / "train_digits.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_digits(digits: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch on a third of the images."""
    assert digits.main(["--epochs", "1", "--images", "448", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert list(digits.networks()) == ["SE-ResNet", "ECA-ResNet", "SKNet"]
    for name in digits.networks():
        row = re.search(rf"^{name} .*$", text, re.MULTILINE)
        assert row is not None and "coincide" in row.group()
        blocks, eager, ours = row.group().split()[1:4]
        assert int(blocks) == 4 and eager == ours
        chart = tmp_path / f"{name.lower()}.png"
        assert chart.stat().st_size > 10_000 and f"gate profile: {chart}" in text
    assert "eager and accelerated training curves coincide" in text.splitlines()[-1]


def test_digits_are_learned(digits: Any) -> None:
    """Much better than by chance, which is 10 %."""
    data, test = digits.digits(448)
    assert len(data.labels) == 448 and len(test.labels) == 500
    curve = digits.train(digits.networks()["SE-ResNet"](), data, test, 5, lambda text: None)
    assert len(curve.losses) == 5 * (448 // digits.BATCH)
    assert curve.losses[-1] < curve.losses[0] and curve.accuracy > 0.5


def test_digits_notices_a_wrong_gradient(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    accelerate = chattn_cuda.accelerate

    def with_error(model: nn.Module, backend: str) -> Any:
        report = accelerate(model, backend)
        weight = next(model.parameters())
        weight.register_hook(lambda g: g * (1 + 1e-3))
        return report

    monkeypatch.setattr(chattn_cuda, "accelerate", with_error)
    se = {"SE-ResNet": digits.networks()["SE-ResNet"]}
    monkeypatch.setattr(digits, "networks", lambda: se)
    arguments = ["--epochs", "1", "--images", "128", "--output", str(tmp_path)]
    assert digits.main(arguments) == 1
    assert "DIFFER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--images", "63"], "--images must be at least 64, a batch"),
        (["--backend", "nope"], "backend must be one of auto"),
    ],
)
def test_digits_bad_arguments(digits: Any, arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        digits.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
