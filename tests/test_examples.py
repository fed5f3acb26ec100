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
    assert digits.main(["--epochs", "1", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for name in digits.networks():
        row = re.search(rf"^{name} .*$", text, re.MULTILINE)
        assert row is not None and "coincide" in row.group()
        blocks, eager, ours = row.group().split()[1:4]
        assert int(blocks) == 4 and eager == ours
        assert float(ours.rstrip("%")) > 30  # after one epoch; 10 is chance
        chart = tmp_path / f"{name.lower()}.png"
        assert chart.stat().st_size > 10_000 and f"gate profile: {chart}" in text
    assert "eager and accelerated training curves coincide" in text.splitlines()[-1]


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
    monkeypatch.setattr(digits, "networks", lambda: {"SE-ResNet": small(digits)})
    assert digits.main(["--epochs", "1", "--output", str(tmp_path)]) == 1
    assert "DIFFER" in capsys.readouterr().out


def small(digits: Any) -> Any:
    from timm.layers import SEModule

    return lambda: digits.residual_network(SEModule)


def test_digits_bad_arguments(digits: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        digits.main(["--epochs", "0"])
    assert exit_.value.code == 2
    assert "--epochs must be at least 1" in capsys.readouterr().err
