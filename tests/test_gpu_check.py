"""tools/gpu_*.py: steps as processes, and the first page; `--rehearse` runs everything."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402
import gpu_main  # noqa: E402
import gpu_results  # noqa: E402
import gpu_runner  # noqa: E402
import gpu_summary  # noqa: E402
import gpu_tables  # noqa: E402
from gpu_results import Times, emit, emit_row, read  # noqa: E402
from gpu_runner import Runner, Step  # noqa: E402


# ---- steps as processes -------------------------------------------------------------------------
def step(name: str, code: str, limit: float = 20, **more: Any) -> Step:
    return Step(name, [sys.executable, "-c", code], limit, **more)


def run(steps: list[Step], folder: Path, seconds: float = 60) -> list[tuple[str | None, str]]:
    Runner(steps, folder / "log", dict(os.environ), seconds).run()
    return [(s.status, s.note) for s in steps]


def test_what_becomes_of_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        step("good", "print('RESULT 3 cases'); print('more')"),
        step("bad", "print('what happened'); raise SystemExit(3)"),
        step("needs", "print('never')", needs=("good", "bad")),
        step("after", "print('anyway')", after=("bad",)),
        step("late", "raise SystemExit(124)"),
        Step("cannot", [], 20, note="no tool"),
    ]
    assert run(steps, tmp_path) == [
        ("ok", "3 cases"),
        ("failed", "what happened"),
        ("skipped", "without bad"),
        ("ok", "anyway"),
        ("timed out", ""),
        ("skipped", "no tool"),
    ]
    log = (tmp_path / "log").read_text()
    assert "==== good: ok" in log and "more" in log and "what happened" in log
    assert "good: ok, 0 s; 3 cases" in capsys.readouterr().out


def test_step_out_of_time(tmp_path: Path) -> None:
    """A process in a session of its own, which outlives the step, does not hold it up."""
    code = (
        "import subprocess, sys, time; print('begun', flush=True);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(9)'],"
        "start_new_session=True); time.sleep(60)"
    )
    start = time.monotonic()
    assert run([step("slow", code, limit=4.5)], tmp_path) == [("timed out", "begun")]
    assert time.monotonic() - start < 8


def test_the_total_time_is_kept(tmp_path: Path) -> None:
    steps = [step("slow", "import time; time.sleep(60)"), step("next", "", after=("slow",))]
    start = time.monotonic()
    assert run(steps, tmp_path, seconds=5) == [("timed out", ""), ("skipped", "no time left")]
    assert time.monotonic() - start < 8


def test_steps_know_their_time(tmp_path: Path) -> None:
    code = "import gpu_results; print(f'RESULT {gpu_results.left():.0f}')"
    one = step("asks", code, limit=30, cwd=ROOT / "tools")
    run([one], tmp_path)
    assert 10 <= float(one.note) <= 30 - gpu_runner.INNER_SECONDS


def test_cores_are_shared(tmp_path: Path) -> None:
    """What keeps all cores busy runs alone, until it says that it is ready to measure."""
    everything = len(gpu_runner.cores())
    begin, end = "import os, time; begin = time.monotonic()", "print('RESULT', begin)"
    tell = f"open(os.environ['{gpu_runner.READY}'], 'w')"
    wait = f"\nwhile not os.path.exists({str(tmp_path / 'met')!r}): time.sleep(0.02)\n"
    meet = f"open({str(tmp_path / 'met')!r}, 'w')"
    steps = [
        step("first", f"{begin}; time.sleep(1); begin = time.monotonic(); {end}", cores=everything),
        step("second", f"{begin}; {tell}{wait}{end}", cores=everything),
        step("third", f"{begin}; {meet}; {end}", cores=everything),
    ]
    run(steps, tmp_path)
    first, second, third = (float(s.note) for s in steps)
    assert first < second < third, "the first had ended; the second had not, and was ready"


def test_who_measures_has_cores_of_its_own() -> None:
    many, few = set(range(16)), {0, 1}
    assert gpu_runner.quiet_cores(many) == {0, 1}
    assert gpu_runner.other_cores(many) == many - {0, 1}
    assert gpu_runner.quiet_cores(few) == gpu_runner.other_cores(few) == few


def test_a_page_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    steps = [step("one", "print('RESULT 1')"), step("two", "print('RESULT 2')", after=("one",))]
    Runner(steps, tmp_path / "log", dict(os.environ), 60, lambda: 1 / 0).run()
    assert [s.note for s in steps] == ["1", "2"]


def test_build_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """By what it is made from: a copied tree has new dates, and the built module may be older."""
    for name in ("csrc/a.cu", "setup.py", "chattn_cuda/_C.abi3.so", "build/gpu-check/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("import sys; print('chattn_cuda: CUDA kernels included')")
    monkeypatch.setattr(gpu_runner, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_runner, "BUILD", tmp_path / "build" / "gpu-check")

    def result() -> str:
        assert gpu_runner.build("9.0", take_any=False) == 0
        return gpu_runner.marked(capsys.readouterr().out)

    assert result() == "chattn_cuda: CUDA kernels included"
    assert result() == "found, as it was built before"
    (tmp_path / "csrc" / "a.cu").write_text("changed")
    assert result() == "chattn_cuda: CUDA kernels included"
    (tmp_path / "chattn_cuda" / "_C.abi3.so").unlink()
    assert result() == "chattn_cuda: CUDA kernels included"
    assert gpu_runner.fingerprint("9.0") != gpu_runner.fingerprint("10.0")


# ---- records and the first page -----------------------------------------------------------------
def test_records(records: Path) -> None:
    assert read(records) == []
    emit_row("models", "a", "ms", {"eager": Times.of([1.0, 3.0])})
    emit_row("models", "b", "ms", {"eager": Times.of([4.0])})
    emit_row("models", "a", "ms", {"eager": Times.of([2.0, 1.0, 4.0, 3.0, 5.0], 10.0, gib=1.5)})
    emit_row("models", "c", "ms", {"eager": Times.of([1.0]), "both": Times.of([2.0])})
    emit_row("models", "c", "ms", {"eager": Times.of([3.0])})  # by another process, too late
    with records.open("a") as file:
        file.write('{"what": "row", "table": "mod')  # its process was killed
    found = gpu_results.rows(read(records))
    assert list(found) == [("models", "a"), ("models", "b"), ("models", "c")]
    assert [t.median for t in found["models", "c"][1].values()] == [1.0, 2.0]
    assert found["models", "a"] == ("ms", {"eager": Times(30, 20, 40, 5, gib=1.5)})
    assert found["models", "b"][1]["eager"] == Times(4, 4, 4, 1)


def made_up(records: Path) -> tuple[list[Step], list[dict[str, Any]]]:
    """A run in which much went wrong."""

    def times(**by_name: tuple[float, float, float]) -> dict[str, Times]:
        return {name: Times(*values, 9) for name, values in by_name.items()}

    emit("conditions", text="a device, torch 2.11.0")
    emit_row("models", "net training", "ms",
             times(eager=(50, 49, 51), accelerated=(45, 44, 46)))  # fmt: skip
    emit_row("models", "net training", "ms",
             times(eager=(50, 49, 51), accelerated=(40, 39, 41), compiled=(30, 29, 31),
                   both=(60, 58, 61)))  # fmt: skip
    emit_row("models", "net inference", "ms", times(eager=(10, 9, 12), accelerated=(10.5, 10, 11)))
    emit_row("host", "se inference", "us", times(eager=(97, 96, 98), cuda=(75, 74, 76),
                                                 triton=(162, 160, 164)))  # fmt: skip
    emit("kernel", block="se", layout="nchw", stage="256x56", batch=128, kernel="apply Gate",
         us=186.0, maps=2, copy=138.0)  # fmt: skip
    emit("kernel", block="se", layout="nchw", stage="256x56", batch=128, kernel="reduce DotOp",
         us=276.0, maps=2, copy=138.0)  # fmt: skip
    emit("kernel", block="se", layout="nchw", stage="256x56", batch=8, kernel="contract",
         us=39.0, maps=None, copy=11.0)  # fmt: skip
    for i in range(53):
        text = f"test_numerics.py::test_gradients[sk-{i}]: AssertionError: dx is {i}.5e-3 off"
        emit("problem", step="tests", text=text)
    emit("problem", step="tests", text="test_numerics.py::test_gradients[se]: RuntimeError: no")
    emit("problem", step="host execution", text="se: dx off by 1e-3")
    emit("tests", part=0, collected=100, passed=10, failed=0, skipped=0)
    emit("tests", part=0, collected=100, passed=40, failed=50, skipped=2)
    emit("tests", part=1, collected=100, passed=90, failed=4, skipped=0)
    steps = [
        Step("build", ["x"], 1, status="ok", seconds=74),
        Step("memcheck", ["x"], 1, status="failed", note="ERROR SUMMARY: 3 errors"),
        Step("tests", ["x"], 1, status="timed out", note="12 processes"),
        Step("late", ["x"], 1, status="skipped", note="no time left"),
    ]
    return steps, read(records)


PROMISED = {
    ("models", "net training"): ("eager", "accelerated", "compiled", "both"),
    ("models", "net inference"): ("eager", "accelerated", "compiled", "both"),
    ("models", "other"): ("eager",),
}


def test_what_is_wrong(records: Path) -> None:
    assert gpu_summary.wrong(*made_up(records)) == [
        "memcheck: failed: ERROR SUMMARY: 3 errors",
        "host execution: se: dx off by 1e-3",
        "53 times: test_numerics.py::test_gradients[sk-0]: AssertionError: dx is 0.5e-3 off",
        "test_numerics.py::test_gradients[se]: RuntimeError: no",
    ]


def test_what_is_slower(records: Path) -> None:
    """Worst first; what lies within the spread comes last and says so."""
    assert gpu_summary.slower(made_up(records)[1]) == [
        "0.50x models: net training: both 60 (58 to 61), compiled 30 (29 to 31) ms",
        "0.60x host: se inference: triton 162 (160 to 164), eager 97 (96 to 98) us",
        "0.95x models: net inference: accelerated 10.5 (10 to 11), eager 10 (9 to 12) ms,"
        " within the spread",
    ]


def test_what_is_left(records: Path) -> None:
    steps, found = made_up(records)
    assert gpu_summary.left_out(steps, found, PROMISED) == [
        "tests: timed out; 12 processes",
        "late: skipped; no time left",
        "models: net inference: compiled, both",
        "models: other: eager",
        "tests: 14 of 200 were not run",
    ]


def test_first_page(records: Path) -> None:
    steps, found = made_up(records)
    page = gpu_summary.page("gpu-check", 341.0, steps, found, PROMISED)
    assert page[:9] == [
        "==== gpu-check, 341 s: a device, torch 2.11.0",
        "ran (s): build 74",
        "tests: 200 collected, 130 passed, 54 failed, 2 skipped, 14 left",
        "models: accelerated 1.09x eager (0.95 to 1.25, 2 rows); both 0.50x compiled"
        " (0.50 to 0.50, 1 rows)",
        "host: cuda 1.29x eager (1.29 to 1.29, 1 rows); triton 0.60x eager (0.60 to 0.60, 1 rows)",
        "1 passes below 70% of a copy's speed: 50% se reduce DotOp 128x256x56 nchw",
        "1 kernels without a map above 5 or 3 us: 39 us se contract 8x256x56 nchw",
        "-- wrong: 4",
        "memcheck: failed: ERROR SUMMARY: 3 errors",
    ]
    assert "-- slower than without the package: 3" in page
    assert page[-1] == "tests: 14 of 200 were not run"


def test_first_page_has_room_for_everything(records: Path) -> None:
    """However much there is: 40 lines that fit, something of each section, and the rest counted."""
    steps, _ = made_up(records)
    for i in range(80):
        emit("problem", step="tests", text=f"test_{i}.py::test: Error{'x' * 200}{chr(65 + i)}")
        times = {"eager": Times(1, 1, 1, 5), "accelerated": Times(2 + i, 2, 2, 5)}
        emit_row("models", f"row {i}", "ms", times)
    found = read(records)
    page = gpu_summary.page("gpu-check", 341.0, steps, found, PROMISED)
    assert len(page) == gpu_summary.LINES
    assert max(map(len, page)) <= gpu_summary.WIDTH
    wrong, slow = len(gpu_summary.wrong(steps, found)), len(gpu_summary.slower(found))
    assert f"-- wrong: {wrong}" in page
    assert f"-- slower than without the package: {slow}" in page
    assert page[-1] == "tests: 14 of 200 were not run", "short sections are whole"
    more = [
        int(m[1]) for line in page if (m := re.match(r"and (\d+) more, in gpu-check.txt", line))
    ]
    begin, end = page.index(f"-- wrong: {wrong}"), page.index("-- left out: 5")
    assert sum(more) + (end - begin - 2) - len(more) == wrong + slow


def test_first_page_of_nothing(records: Path) -> None:
    steps = [Step("build", ["x"], 1, status="failed", note="no nvcc")]
    page = gpu_summary.page("gpu-models", 3.0, steps, [], {})
    assert page[0] == "==== gpu-models, 3 s: nothing is known"
    assert page[2:] == [
        "-- wrong: 1",
        "build: failed: no nvcc",
        "-- slower than without the package: nothing",
        "-- left out: nothing",
    ]


def test_tables(records: Path) -> None:
    lines = gpu_tables.tables(made_up(records)[1])
    (training,) = (line for line in lines if line.startswith("net training"))
    assert "40 (39-41) ms 1.25x" in training and "60 (58-61) ms 0.50x" in training
    (apply,) = (line for line in lines if line.startswith("apply Gate"))
    assert re.fullmatch(r"apply Gate +186 +74% +- *", apply)


# ---- the command line ----------------------------------------------------------------------------
def test_files_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs into one folder leave six files."""
    monkeypatch.setattr(gpu_main, "build_step", lambda arch, any: step("build", ""))
    for name in ("gpu-check", "gpu-models"):
        plan = gpu_main.Plan(name, 20, lambda r: [step("one", "")], lambda r: {}, lambda w, r: 0)
        monkeypatch.setattr(sys.modules["__main__"], "__file__", "/dev/null", raising=False)
        assert gpu_main.run(plan, tmp_path, None, True, tmp_path / "caches") == 0
        text = (tmp_path / f"{name}.txt").read_text()
        assert text.startswith(f"==== {name}")
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert len(files) <= 8


def test_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                       tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu_main, "architecture", lambda: None)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    plan = gpu_main.Plan("gpu-check", 20, gpu_check.plan, gpu_check.promises, gpu_check.run_step)
    assert gpu_main.main(plan) == 2
    assert "--rehearse" in capsys.readouterr().err
