"""The examples run, agree with eager PyTorch, and end in what was gained."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import chattn_cuda

FOLDER = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
NEEDED = ("timm", "torchvision", "sklearn")
RATIO = r"(\d+\.\d\d)x \((\d+\.\d\d) to (\d+\.\d\d)\)"
LITTLE = {
    "finetune": ["--steps", "5", "--batch", "4", "--size", "32"],
    "serve": ["--model", "test_efficientnet", "--size", "64", "--calls", "8"],
    "timm_training": ["--epochs", "1", "--batch", "256", "--size", "16"],
}


def load(name: str) -> ModuleType:
    for library in NEEDED:
        pytest.importorskip(library, reason=f"{library} is not installed")
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output(name: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What a small run of an example prints."""
    load(name).main([*LITTLE[name], *more])
    return capsys.readouterr().out


def assert_gained(text: str) -> None:
    """The last line is a ratio between its quartiles."""
    found = re.search(RATIO, text.splitlines()[-1])
    assert found is not None and "gained" in text.splitlines()[-1]
    median, low, high = map(float, found.groups())
    assert 0 < low <= median <= high


def curves(text: str) -> list[list[float]]:
    """Step, eager, accelerated, difference, nudged, difference."""
    rows = re.findall(r"^ +\d+( +[\d.]+){2} +\S+e\S+ +[\d.]+ +\S+e\S+$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if re.match(r" +\d+ +\d", line)]
    assert len(lines) == len(rows) > 0
    return [[float(cell) for cell in line.split()] for line in lines]


def test_finetune(capsys: pytest.CaptureFixture[str]) -> None:
    text = output("finetune", capsys)
    assert "20 modules accelerated, 0 left" in text
    assert_gained(text)
    first, *_, last = curves(text)
    assert first[1] == pytest.approx(first[2], rel=1e-5)
    assert last[0] == 5


def test_finetune_curves_coincide_in_float64(capsys: pytest.CaptureFixture[str]) -> None:
    """Unlike those of weights that differ by a ten-millionth; later so few images amplify both."""
    more = ("--dtype", "float64", "--size", "64", "--batch", "8")
    for _, _, _, ours, _, nudged in curves(output("finetune", capsys, *more))[:2]:
        assert ours < 1e-9 < nudged


def test_finetune_shows_a_wrong_gradient(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerate = chattn_cuda.accelerate

    def with_error(model: nn.Module) -> chattn_cuda.Report:
        next(model.parameters()).register_hook(lambda gradient: gradient * (1 + 1e-3))
        return accelerate(model)

    monkeypatch.setattr(chattn_cuda, "accelerate", with_error)
    assert curves(output("finetune", capsys, "--dtype", "float64"))[-1][3] > 1e-7


def test_finetune_counts_what_is_kept() -> None:
    x = torch.randn(3, 8)
    layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    # The input, and the ReLU's result, which two nodes of the graph share.
    assert load("finetune").kept(layers, x) * 2**20 == 4 * (3 * 8 + 3 * 16)


def test_serve(capsys: pytest.CaptureFixture[str]) -> None:
    text = output("serve", capsys)
    assert_gained(text)
    found = re.search(r"^accelerated: differs from eager by (\S+)$", text, re.MULTILINE)
    assert found is not None and float(found[1]) < 1e-5
    for name in ("eager", "accelerated"):
        row = re.search(rf"^{name} +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
        assert row is not None
        p50, p90, p99 = map(float, row.groups())
        assert 0 < p50 <= p90 <= p99


@pytest.mark.slow
def test_serve_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    text = output("serve", capsys, "--compile")
    assert_gained(text)
    assert re.search(rf"both is {RATIO} as fast as compiled", text)
    for name in ("compiled", "both"):
        found = re.search(rf"^{name}: differs from eager by (\S+)$", text, re.MULTILINE)
        assert found is not None and float(found[1]) < 1e-4


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_timm_training(amp: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = output("timm_training", capsys, "--amp", amp)
    assert f"{amp}, eager, 1 processes, 5 steps" in text
    assert_gained(text)


def test_timm_training_learns(capsys: pytest.CaptureFixture[str]) -> None:
    """Eager and accelerated end at the same loss, and at averaged weights that know the digits."""
    text = output("timm_training", capsys, "--amp=float32", "--epochs=4", "--batch=64")
    rows = re.findall(r"^(eager|accelerated) .*\) +([\d.]+) +([\d.]+) %$", text, re.MULTILINE)
    (_, eager, right), (_, ours, _) = rows
    assert float(ours) == pytest.approx(float(eager), rel=0.2)
    assert float(right) > 50


@pytest.mark.parametrize("more", [[], pytest.param(["--compile"], marks=pytest.mark.slow)])
def test_timm_training_in_two_processes(more: list[str]) -> None:
    load("timm_training")  # or skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(FOLDER / "timm_training.py"), *LITTLE["timm_training"], *more]
    paths = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "2 processes, 2 steps of 256 images each" in done.stdout
    assert done.stdout.count("gained") == 1


@pytest.mark.parametrize("name", NAMES)
def test_missing_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(name)
    library = "torchvision" if name == "finetune" else "timm"
    for loaded in [key for key in sys.modules if key.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)  # what `import` then raises is of that class
    with pytest.raises(SystemExit, match=f"^{library} is not installed: pip install .*{library}"):
        load(name)


@pytest.mark.parametrize("name", NAMES)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(name).main(["--help"])
    assert exit_.value.code == 0
    assert (load(name).__doc__ or "").splitlines()[0] in " ".join(capsys.readouterr().out.split())
