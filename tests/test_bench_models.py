"""tools/bench_models.py: whole models, here tiny ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from chattn_cuda import _native

pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_models  # noqa: E402
import gpu_results  # noqa: E402
import variants  # noqa: E402
from bench_models import Plan, main  # noqa: E402
from gpu_results import Times, read  # noqa: E402

VARIANTS = ["eager", "accelerated", "compiled", "both"]
TINY = {"layers": (1, 1, 1, 1), "block_args": {"attn_layer": "se"}}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Options for a network of four layers; nothing is left in the environment."""
    if torch.cuda.is_available() or _native.why_not_cpu() is not None:
        pytest.skip("needs the CPU kernels, and no GPU")
    for name in (gpu_results.FILE, gpu_results.END):
        monkeypatch.setenv(name, "")  # so that it is restored
    plan = Plan(("resnet18",), 32, True, 0.0, tuple(TINY.items()))
    monkeypatch.setattr(bench_models, "QUICK", plan)
    monkeypatch.setattr(bench_models, "EXPECTED", {False: 0.0, True: 0.0})
    monkeypatch.setattr(variants, "COMPILER", "aot_eager")
    return ["--quick", "--results", str(tmp_path)]


def times_of(folder: Path) -> dict[str, dict[str, Times]]:
    found = gpu_results.rows(read(folder / "models-cpu.jsonl"))
    return {row: times for (_, row), (_, times) in found.items()}


def test_rows_cover_what_is_promised() -> None:
    found = bench_models.rows(bench_models.NAMES)
    assert len(found) == len(set(found)) == 6 * 3 * 2
    assert not found[0].training and found[-1].training  # what compiles fastest comes first
    only = bench_models.rows(bench_models.NAMES, ("inference", "batch 1,"))
    assert {row.work for row in only} == {
        "inference, batch 1, channels_last", "inference, batch 1, nchw"
    }  # fmt: skip


def test_a_run(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*bench_models.marks("whole models")))
    assert main([*tiny, "--only", "batch 8, nchw", "--markdown", str(document)]) == 0
    found = times_of(tmp_path)
    assert set(found) == {f"resnet18 {w}, batch 8, nchw" for w in ("inference", "training")}
    for times in found.values():
        assert list(times) == VARIANTS
        assert all(t.median > 0 and t.error is not None and t.error < 1e-3 for t in times.values())
    out = capsys.readouterr().out
    assert "left out: nothing" in out and "PROBLEM" not in out
    lines = document.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    command = "python tools/bench_models.py --only 'batch 8, nchw' --quick --fuse tail"
    assert f"by `{command}`" in "\n".join(lines)
    row = next(line for line in lines if line.startswith("| resnet18"))
    assert row.count("x**") == 2 and row.count("±") == 4

    assert main(["--show", "--results", str(tmp_path)]) == 0
    assert "resnet18 training, batch 8, nchw" in capsys.readouterr().out


def test_what_is_left_out_is_listed(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench_models, "EXPECTED", {False: 1e6, True: 1e6})
    assert main([*tiny, "--only", "inference, batch 1, nchw"]) == 0
    assert list(times_of(tmp_path)["resnet18 inference, batch 1, nchw"]) == VARIANTS[:2]
    assert "resnet18 inference, batch 1, nchw: compiled, both" in capsys.readouterr().out
    assert main([*tiny, "--minutes", "0"]) == 0
    out = capsys.readouterr().out
    assert "left out: 6" in out
    assert "resnet18 training, batch 8, nchw: eager, accelerated, compiled, both" in out


def test_a_wrong_variant_is_a_problem(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import chattn_cuda

    accelerate = chattn_cuda.accelerate

    def wrong(model: Any, backend: str) -> Any:
        made = accelerate(model, backend)
        with torch.no_grad():
            model.fc.bias += 10.0
        return made

    monkeypatch.setattr(chattn_cuda, "accelerate", wrong)
    assert main([*tiny, "--no-compile", "--only", "inference, batch 1, nchw"]) == 1
    assert "PROBLEM" in capsys.readouterr().out


def test_without_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show", "--results", str(tmp_path)]) == 0
    assert "make bench-models" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no section"):
        bench_models.write_section(ROOT / "Makefile", "")
