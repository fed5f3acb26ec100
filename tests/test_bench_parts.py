"""tools/bench_parts.py, with a tiny network: what it leaves is what the report reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from chattn_cuda import _native

pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_models  # noqa: E402
import bench_parts  # noqa: E402
import gpu_results  # noqa: E402
from report.results import read  # noqa: E402

from chattn_cuda.cli import cases  # noqa: E402
from chattn_cuda.cli.breakdown import FUSED, PARTS  # noqa: E402

TINY = {"layers": (1, 1, 1, 1), "block_args": {"attn_layer": "se"}}


def test_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if torch.cuda.is_available() or _native.why_not_cpu() is not None:
        pytest.skip("needs the CPU kernels, and no GPU")
    plan = bench_models.Plan(("resnet18",), 32, False, 0.0, tuple(TINY.items()))
    monkeypatch.setenv(gpu_results.FILE, "")  # so that it is restored
    monkeypatch.setattr(bench_models, "QUICK", plan)
    monkeypatch.setattr(bench_parts, "ROUNDS", 2)
    monkeypatch.setattr(bench_parts, "SECONDS", 0.0)
    row = cases.Row("se", (2, 32, 7, 7), "channels_last", cases.TRAINING)
    monkeypatch.setattr(cases, "rows", lambda *_: [row])
    assert bench_parts.main(["--quick", "--results", str(tmp_path)]) == 0
    found = read(tmp_path / "parts-cpu.jsonl")
    assert found.source.command == "python tools/bench_parts.py --quick"
    assert "torch" in found.source.conditions
    parts = {(r.work, r.part): r.times for r in found.rows if r.part}
    works = ("training, batch 8", "inference, batch 8")
    for work in works:  # maps are too small for tails, unless a backend is named
        assert {w for w, _ in parts} == set(works)
        assert set(PARTS) - {part for w, part in parts if w == work} <= {FUSED}
    for (_, part), times in parts.items():
        assert list(times) == ["eager", "accelerated"][part == FUSED :]
        assert part == PARTS[-1] or all(t.median > 0 for t in times.values()), part
    (block,) = (r for r in found.rows if r.of_block)
    assert (block.subject, block.work, block.layout) == (
        "se 2x32x7x7 float32", "forward+backward", "channels_last"
    )  # fmt: skip
    assert list(block.times) == ["copy", "eager", "cpu"]
