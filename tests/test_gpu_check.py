"""tools/gpu_check.py, as far as it goes without a GPU; `--rehearse` runs all of its steps."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from chattn_cuda.cli import cases as cli_cases
from tests import cases, conftest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("gpu_check")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("gpu_bench")


def run(script: ModuleType, folder: Path, code: str, limit: float = 20) -> tuple[str, str]:
    step = script.Step("step", limit, "step.log", [sys.executable, "-c", code])
    output = script.run_step(step, folder, dict(os.environ), limit)
    assert output in (folder / "step.log").read_text()
    return step.status, output


def test_step_status(script: ModuleType, tmp_path: Path) -> None:
    assert run(script, tmp_path, "print('fine')") == ("ok", "fine\n")
    assert run(script, tmp_path, "print('bad'); raise SystemExit(3)") == ("failed", "bad\n")


def test_step_out_of_time(script: ModuleType, tmp_path: Path) -> None:
    """A process in a session of its own, which outlives the step, does not hold it up."""
    code = (
        "import subprocess, sys, time; print('begun', flush=True);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(6)'],"
        "start_new_session=True); time.sleep(60)"
    )
    start = time.monotonic()
    assert run(script, tmp_path, code, limit=2) == ("timed out", "begun\n")
    assert time.monotonic() - start < 5


def test_notes(script: ModuleType) -> None:
    passed = "....\n[100%]\n12 passed, 3 skipped in 1.20s\n"
    assert script.pytest_note(passed) == "12 passed, 3 skipped in 1.20s"
    assert script.pytest_note("...F.. [ 40%]\n..") == "stopped after 8 tests"
    assert script.marked("a\nRESULT 3 cases\nb\n") == "3 cases"
    assert script.marked("a\nlast\n\n") == "last"
    assert script.sanitizer_note("x\n===== ERROR SUMMARY: 0 errors\n") == "ERROR SUMMARY: 0 errors"
    assert script.sanitizer_note("Error: Device not supported. x").startswith(
        "Device not supported"
    )


def test_notes_add_up(script: ModuleType) -> None:
    notes = ["12 passed, 3 skipped in 1.20s", "5 passed, 1 failed in 9s", "stopped after 7 tests"]
    assert script.total_note(notes) == "17 passed, 3 skipped, 1 failed; 1 unfinished"
    assert script.total_note(["stopped after 0 tests"]) == "no tests; 1 unfinished"


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_parts_of_the_tests_make_all_of_them(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Item:
        def get_closest_marker(self, name: str) -> None:
            return None

    everything, together = [Item() for _ in range(12)], []
    for i in range(count):
        part = list(everything)
        monkeypatch.setenv("CHATTN_TEST_PART", f"{i}/{count}")
        conftest.pytest_collection_modifyitems(part)
        assert len(part) in (12 // count, 12 // count + 1)
        together += part
    assert together == everything


def test_steps_know_every_block() -> None:
    steps = importlib.import_module("gpu_steps")
    blocks = {name for name, block in cases.BLOCKS.items() if block.op}  # others have no operators
    assert set(steps.BLOCKS) == blocks
    for rehearse in (False, True):
        assert {case.block for case in steps.cases(rehearse)} == blocks


def test_rates(bench: ModuleType) -> None:
    row = bench.Row("se", (8, 256, 56, 56), "bfloat16", "nchw", "forward")
    two_pass, floor = bench.figures(row, ms=1.0)
    assert two_pass == pytest.approx(3 * 12.845056)  # GB/s: bytes / 1e-3 s / 1e9
    assert floor == pytest.approx(2 * 12.845056)


def test_rows_cover_what_is_promised(bench: ModuleType) -> None:
    rows = bench.bench_rows(rehearse=False)
    # stages, N, types, layouts, directions, blocks
    assert len(set(rows)) == len(rows) == 4 * 3 * 2 * 2 * 2 * len(cli_cases.BLOCKS)
    assert {row.block for row in rows} == set(cli_cases.BLOCKS)
    assert {row.shape[0] for row in rows} == {32, 64, 128}


def test_files_are_few(script: ModuleType, bench: ModuleType, tmp_path: Path) -> None:
    steps = script.plan(None, rehearse=False)
    script.write_summary(steps, tmp_path, "9.0", 12.0)
    bench.save(tmp_path, {}, "", [])
    logs = {step.log for step in steps}
    assert len(logs | {path.name for path in tmp_path.iterdir()}) <= 8
    assert json.loads((tmp_path / "gpu-check.json").read_text())["compute_capability"] == "9.0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu(script: ModuleType, capsys: pytest.CaptureFixture[str],
                       monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert script.main() == 2
    assert "--rehearse" in capsys.readouterr().err
