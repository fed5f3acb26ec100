from __future__ import annotations

import copy
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import _native, backends
from chattn_cuda.cli import breakdown, cases, chart, demo, demo_check, doctor, main, measure, report
from chattn_cuda.cli.environment import Environment, architecture_runs, environment
from chattn_cuda.cli.measure import Entry, Result
from chattn_cuda.cli.tails import TAILS
from chattn_cuda.cli.terminal import Table, Terminal
from chattn_cuda.modules import deferred
from chattn_cuda.peers import Measured

SMALL = (2, 32, 5, 5)
ROOT = Path(__file__).parents[1]

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="needs timm, which is not installed"
)
needs_cpu_kernels = pytest.mark.skipif(
    backends.why_not("cpu", "cpu") is not None, reason="needs the native module"
)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes packages look as if they were not installed."""
    find_spec = importlib.util.find_spec

    def hide(*names: str) -> None:
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name in names else find_spec(name, *rest),
        )

    return hide


@pytest.fixture
def small_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, block in cases.BLOCKS.items():
        monkeypatch.setitem(cases.BLOCKS, name, replace(block, shapes=(SMALL,)))


# ---- doctor ------------------------------------------------------------------------------------


def test_doctor_names_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in backends.names():
        assert re.search(rf"^\s*{name}\s+(usable|not usable)", out, re.M), name
    assert torch.__version__ in out
    assert "CHATTN_BUILD_CUDA" in out


def test_doctor_without_rich(
    without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without("rich")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^reference\s+usable\s+on CPU", out, re.M)
    assert "\x1b" not in out


def test_doctor_shows_the_loader_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ImportError("chattn_cuda._C was built but does not load: undefined symbol: _Zxyz")

    monkeypatch.setattr(_native, "module", broken)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "undefined symbol: _Zxyz" in out
    assert re.search(r"^\s*cpu\s+broken", out, re.M)
    assert re.search(r"^\s*reference\s+usable", out, re.M)


def test_doctor_without_the_native_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_native, "module", lambda: None)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^\s*cpu\s+not usable\s+the native module chattn_cuda._C was not built", out, re.M
    )
    assert "pip install --no-build-isolation -e ." in out


@pytest.mark.parametrize("error", [float("nan"), 1e-3])
def test_doctor_finds_wrong_results(
    error: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_self_check", lambda name, device: error)
    assert main(["doctor"]) == 1
    assert "wrong results" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("7.5;9.0", (9, 0), True),
        ("9.0a", (9, 0), True),
        ("12.0+PTX", (9, 0), False),
        ("10.0a", (10, 3), False),
        ("10.0f", (10, 3), True),
        ("", (9, 0), False),
    ],
)
def test_architecture_runs(built: str, capability: tuple[int, int], runs: bool) -> None:
    assert architecture_runs(built, capability) is runs


# ---- the measuring core ------------------------------------------------------------------------


@needs_timm
@needs_cpu_kernels
@pytest.mark.parametrize("direction", cases.DIRECTIONS)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_measure(layout: str, direction: str) -> None:
    row = cases.Row("se", SMALL, layout, direction)
    result = measure.measure(row, (cases.EAGER, "cpu"), seconds=0, min_rounds=3)
    assert list(result.entries) == [cases.EAGER, "cpu"]
    for entry in result.entries.values():
        assert len(entry.samples) == 3 and min(entry.samples) > 0
        assert entry.error is not None and 0 < entry.error < 1e-5
        assert entry.wrong is None and entry.unavailable is None
    eager, ours = result.entries.values()
    assert eager.ms is not None and ours.ms is not None
    assert result.ratio(cases.EAGER, "cpu") == pytest.approx(eager.ms / ours.ms)


@needs_timm
@needs_cpu_kernels
@pytest.mark.parametrize("direction", cases.DIRECTIONS)
@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: tail.name)
def test_tails_are_measured_by_the_operators(
    tail: Measured, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of them each time, also on maps that "auto" leaves to the layers."""
    gates = []

    def counting(namespace: str, tail: Any, *tensors: Any) -> Any:
        gates.append(tail.gate and tail.gate.block)
        return apply_tail(namespace, tail, *tensors)

    apply_tail = deferred.apply_tail
    monkeypatch.setattr(deferred, "apply_tail", counting)
    row = cases.Row(tail.name, SMALL, "nchw", direction)
    result = measure.measure(row, (cases.EAGER, "cpu"), seconds=0, min_rounds=3)
    gate = "se" if tail.name in ("tail_a", "tail_b") else None
    assert gates == [gate] * (1 + 2 + 3)
    for entry in result.entries.values():
        assert entry.wrong is None and len(entry.samples) == 3
        assert entry.error is not None and 0 < entry.error < 1e-5


@needs_timm
@pytest.mark.parametrize("tail", [t for t in TAILS if t.edge], ids=lambda tail: tail.name)
def test_no_gradient_where_rounding_decides(tail: Measured) -> None:
    """Which side of zero a ReLU is on there, nobody can be blamed for."""
    row = cases.Row(tail.name, (2, 32, 20, 20), direction=cases.TRAINING, dtype=torch.bfloat16)
    problem = cases.Problem(row)
    exact, eager = (y > 0 for y in (problem.exact()[0], problem.call(cases.EAGER)()[0]))
    ((_, dy),) = problem._sets
    assert 0.01 < (dy == 0).double().mean() < 0.5
    assert not dy[exact != eager].any()
    if tail.maps > 1:  # others round once, behind the sign
        assert (exact != eager).any()


@needs_timm
def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    call = cases.Problem.call

    def tampered(self: cases.Problem, name: str) -> Callable[[], tuple[Tensor, ...]]:
        run = call(self, name)
        return run if name == cases.EAGER else lambda: tuple(1.001 * t for t in run())

    monkeypatch.setattr(cases.Problem, "call", tampered)
    row = cases.Row("se", SMALL)
    result = measure.measure(row, (cases.EAGER, "reference"), seconds=0, min_rounds=2)
    assert "y has error 1" in (result.entries["reference"].wrong or "")
    assert not result.entries["reference"].samples
    assert len(result.entries[cases.EAGER].samples) == 2
    assert result.ratio(cases.EAGER, "reference") is None


@needs_timm
def test_compile_that_cannot_run_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(module: nn.Module, **kwargs: object) -> Callable[..., Tensor]:
        def call(x: Tensor) -> Tensor:
            raise RuntimeError("no working C++ compiler\nand more")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    row = cases.Row("se", SMALL)
    result = measure.measure(row, (cases.EAGER, cases.COMPILE), seconds=0, min_rounds=2)
    assert result.entries[cases.COMPILE].unavailable == "no working C++ compiler"


def test_calls_are_timed_in_turn() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = measure.time_calls(calls, "cpu", seconds=0, min_rounds=3)
    assert {name: len(times) for name, times in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(order) == "aabbcc" + "abc" + "bca" + "cab"
    assert measure.time_calls({}, "cpu", seconds=0) == {}


def test_freed_memory_is_kept() -> None:
    """A loop over large tensors faults their pages in once."""
    code = """
import resource, torch
from chattn_cuda.cli.measure import keep_freed_memory
kept = keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    tensors = [torch.ones(n << 20) for n in (2, 20, 6)]
    del tensors
before = faults()
for _ in range(5):
    tensors = [torch.ones(n << 20) for n in (20, 2, 6)]
    del tensors
print(kept, faults() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, faults = run.stdout.split()
    if kept == "False":
        pytest.skip("another C library")
    # Pages of one round; another order of the sizes may take a block that is new.
    assert int(faults) <= 28 * 2**20 * 4 // 4096  # of 5 times so many


def test_waiting() -> None:
    with measure.Waiting() as waiting:
        time.sleep(0.05)
    assert 0 <= waiting.share <= 1  # sleeping is not waiting for a core


def _comparison(change: Callable[[Tensor], Tensor]) -> str | None:
    exact = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eager = exact.float() * (1 + 1e-5)
    return measure.compare(["g"], [change(eager)], [exact], [eager])[1]


@pytest.mark.parametrize(
    "change",
    [
        torch.zeros_like,
        lambda t: t * (1 + 2e-5),
        lambda t: t * float("nan"),
        lambda t: t.double(),
        lambda t: t.T,
        lambda t: t.reshape(5, 4).T.contiguous(),
    ],
)
def test_compare_rejects(change: Callable[[Tensor], Tensor]) -> None:
    assert _comparison(change) is not None


def test_compare_accepts_what_is_as_good_as_eager() -> None:
    assert _comparison(lambda t: t) is None
    assert _comparison(lambda t: t * (1 + 0.5e-5)) is None


def test_rows_cover_every_combination() -> None:
    found = cases.rows("se", "cpu")
    assert len(found) == len({row.id for row in found}) == 4 * 2 * 2
    assert {row.shape for row in found} == set(cases.BLOCKS["se"].shapes)


# ---- reports -----------------------------------------------------------------------------------

CONDITIONS = Environment("A CPU", "avx2", 2, 2, "2.14", "3.11", "0.1", "abc", "", "")


def _report() -> report.Report:
    results = []
    for shape, factor in (((8, 4, 2, 2), 2.0), ((8, 8, 1, 1), 8.0)):
        entries = {
            "eager": Entry([10.0, 10.0, 10.0], 1e-7),
            "torch.compile": Entry([5.0, 5.0, 5.0], 1e-7),
            "cpu": Entry([10.0 / factor] * 3, 2e-7),
        }
        results.append(Result(cases.Row("se", shape), entries))
    return report.Report(results, CONDITIONS, "python -m chattn_cuda bench")


def test_report_means_and_ratios() -> None:
    made = _report()
    assert made.mean(made.groups()[0], "eager", "cpu") == pytest.approx(4.0)
    assert made.mean(made.groups()[0], "torch.compile", "cpu") == pytest.approx(2.0)
    assert report.geometric_mean([2.0, None]) is None
    rows = made.tables()[0].rows
    assert rows[-1] is not None and [str(c) for c in rows[-1]][-3:] == ["4.00x", "2.00x", ""]
    assert made.noise() is None and not made.wrong() and made.problems() == []


def test_report_says_when_the_machine_was_busy() -> None:
    made = _report()
    made.results[0].entries["eager"].samples = [1.0, 1.0, 9.0, 9.0]
    made.results[1].entries["cpu"].waited = 0.5
    assert "2 of 6 medians" in (made.noise() or "")
    assert "~5.00" in str([[str(c) for c in row] for row in made.tables()[0].rows if row])


def test_report_files(tmp_path: Path) -> None:
    made = _report()
    made.results[1].entries["cpu"] = Entry(error=1.0, wrong="y is off")
    made.results[1].entries["torch.compile"] = Entry(unavailable="no compiler")
    csv_path, json_path = made.write(tmp_path / "new")
    assert report.read(json_path) == made
    lines = csv_path.read_text().splitlines()
    assert len(lines) == 1 + 6
    assert lines[0].startswith("block,n,c,h,w,dtype,layout") and "A CPU" in lines[1]
    assert made.wrong() and len(made.problems()) == 2
    json_path.write_text(json.dumps({"results": [{}]}))
    with pytest.raises(ValueError, match="no benchmark report"):
        report.read(json_path)


def test_report_markdown() -> None:
    text = _report().markdown()
    assert "| 8 x 4 x 2 x 2 | 10.0 | 5.00 | 5.00 | 2.00x | 1.00x |" in text
    assert "| `cpu` | **4.00x** | **2.00x** |" in text
    assert "A CPU (avx2), 2 of 2 cores" in text and "`python -m chattn_cuda bench`" in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(widths) == {5, 7}


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_chart(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [
        chart.draw(tmp_path / f"{i}{suffix}", _report().panels(), "Title", CONDITIONS.line())
        for i in range(2)
    ]
    first, second = (path.read_bytes() for path in files)
    assert len(first) > 5000 and first == second


@pytest.mark.parametrize("rich", [True, False])
def test_lines_end_between_words(
    rich: bool,
    without: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """COLUMNS counts in a pipe, too; without it a pipe has no width."""
    if not rich:
        without("rich")
    text = "a sentence that is much longer than forty characters, with words"
    for columns in ("40", "", "nonsense"):
        monkeypatch.setenv("COLUMNS", columns)
        terminal = Terminal()
        terminal.line(f"  - {text}")
        terminal.fields([("name", text)])
        lines = capsys.readouterr().out.splitlines()
        assert " ".join(" ".join(lines).split()) == f"- {text} name {text}"
        if columns == "40":
            assert len(lines) > 3 and max(map(len, lines)) <= 40
            assert lines[1].startswith("    ") and lines[-1].startswith(" " * 18)
        else:
            assert len(lines) == 2


@pytest.mark.parametrize("columns", ["120", "92", "20"])
def test_nothing_in_a_table_is_cut_off(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    row = ["SE-ResNet", *["1,234.5 us"] * 6, "coincide"]
    table = Table("", ["", *["curves differ by"] * 6, "verdict"], [row, None, row])
    Terminal().table(table)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines].count(" ".join(row)) == 2
    if columns == "92":
        assert max(map(len, lines)) <= 92 and " ".join(lines[0].split()) == "curves " * 5 + "curves"


def test_panels_say_what_they_are_of() -> None:
    rows = [cases.Row(block, SMALL) for block in ("se", "sk")]
    entries = {"eager": Entry([1.0]), "cpu": Entry([1.0])}
    made = report.Report([Result(row, entries) for row in rows], CONDITIONS, "")
    titles = [panel.title for panel in made.panels()]
    assert titles == [
        "Squeeze-and-Excitation, nchw, forward", "Selective Kernel, two branches, nchw, forward"
    ]  # fmt: skip
    made.results.append(Result(replace(rows[0], dtype=torch.bfloat16), entries))
    assert made.panels()[2].title == "Squeeze-and-Excitation, bfloat16, nchw, forward"


def test_plain_table() -> None:
    table = Table("", ["name", "ms"], [["a", "1.5"], None, ["long name", "12"]])
    assert table.plain().splitlines() == [
        "name        ms",
        "--------------",
        "a          1.5",
        "--------------",
        "long name   12",
    ]


def test_environment() -> None:
    here = environment("cpu")
    assert here.torch == torch.__version__ and here.threads == torch.get_num_threads()
    assert here.device in here.line() and "/" not in here.device


# ---- bench and demo ----------------------------------------------------------------------------


@needs_timm
@needs_cpu_kernels
def test_bench(small_maps: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device=cpu", "--seconds=0", "--no-compile", f"--results={tmp_path}"]
    assert main(["bench", *arguments, f"--markdown={tmp_path / 't.md'}"]) == 0
    out = capsys.readouterr().out
    assert "Geometric means" in out and "2x32x5x5" in out
    made = report.read(tmp_path / "se-cpu.json")
    assert len(made.results) == 4
    assert made.command == "python -m chattn_cuda bench --device=cpu --seconds=0 --no-compile"
    assert main(["bench", f"--read={tmp_path / 'se-cpu.json'}"]) == 0
    assert "Geometric means" in capsys.readouterr().out
    assert main(["bench", f"--read={tmp_path / 't.md'}"]) == 2


@needs_timm
@needs_cpu_kernels
def test_pytest_benchmark_suite(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    # pytest-benchmark measures nothing in what looks like a worker of pytest-xdist.
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "bench", "-q", "--device=cpu", "--seconds=0",
            "-k", "se-8x2048 and nchw and not backward", f"--results={tmp_path}",
            f"--benchmark-json={tmp_path / 'b.json'}",
        ],
        cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    made = report.read(tmp_path / "se-cpu.json")
    assert made.command.startswith("python -m pytest bench --device=cpu --seconds=0 -k ")
    (row,) = made.results
    replayed = {
        b["params"]["implementation"]: b
        for b in json.loads((tmp_path / "b.json").read_text())["benchmarks"]
    }
    for name, entry in row.entries.items():
        if entry.samples:
            assert replayed[name]["stats"]["median"] == pytest.approx(
                (entry.ms or 0) / 1e3, rel=1e-3
            )
            assert replayed[name]["extra_info"]["max_error"] == entry.error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--backend=unknown"], "must be one of cuda, triton, cpu, reference"),
        (["--batch=0"], "--batch must be at least 1"),
        (["--threads=0"], "--threads must be at least 1"),
        (["--output=chart.txt"], "--output must end in"),
        pytest.param(
            ["--backend=cuda"],
            "--backend cuda: ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_demo_refuses(
    arguments: Sequence[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("timm", "torchvision", "sklearn", "PIL", "rich", "matplotlib"):
        pytest.importorskip(name)
    assert main(["demo", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_missing_packages(without: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    without("timm", "sklearn")
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the demo needs timm, sklearn: pip install timm scikit-learn" in error


def test_photographs() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    images = demo.photographs(8, 32)
    assert images.shape == (8, 3, 32, 32)
    flat = images.flatten(1)
    assert torch.pdist(flat).min() > 1  # all differ
    assert images.abs().max() < 3


TINY = demo.Plan(
    batch=2,
    side=64,
    check_side=64,
    compile_blocks=False,
    compile_model="",
    block_seconds=0,
    model_seconds=0,
    model_rounds=1,
    profiled=1,
)


@needs_timm
@needs_cpu_kernels
def test_demo(
    small_maps: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("torchvision", "sklearn", "PIL", "rich", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.setattr(demo, "_QUICK", TINY)
    path = tmp_path / "chart.png"
    assert main(["demo", "--quick", f"--output={path}"]) == 0
    out = capsys.readouterr().out
    assert "16 modules accelerated" in out
    assert "outputs and gradients agree" in out and "DISAGREE" not in out
    assert out.count("  with tails") == 2 and out.count("plain resnet50") == 2
    assert out.count("Where the time goes") == 2 and out.count("If they took none") == 2
    assert f"chart: {path}" in out
    assert path.read_bytes().startswith(b"\x89PNG")


@needs_cpu_kernels
@pytest.mark.parametrize("training", [False, True])
def test_where_the_time_goes(training: bool) -> None:
    """Every part gets the time of its own modules, in the backward, too."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
            ctx.seconds = seconds
            time.sleep(seconds)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            time.sleep(2 * ctx.seconds)
            return g, None

    def slow(module: type[nn.Module], seconds: float) -> nn.Module:
        class Slowed(module):  # type: ignore[misc, valid-type]
            def forward(self, x: Tensor) -> Tensor:
                return Slow.apply(super().forward(x), seconds)

        return Slowed(4, 4, 1) if module is nn.Conv2d else Slowed(4)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = slow(nn.Conv2d, 0.04), slow(nn.BatchNorm2d, 0.01)
            self.se = nn.Sequential(slow(nn.Conv2d, 0.02))

        def forward(self, x: Tensor) -> Tensor:
            return Slow.apply(x + self.se(self.bn(self.conv(x))), 0.01)

    model = nn.Sequential(Residual(), nn.Flatten()).train(training)
    x = torch.randn(2, 4, 3, 3)

    def call() -> None:
        with torch.set_grad_enabled(training):
            y = Slow.apply(model(x), 0.03)
        if training:
            y.sum().backward()

    (times,) = breakdown.breakdown([(model, call)], ["0.se"], "cpu", 1)
    factor = 3 if training else 1
    expected = {breakdown.CONVOLUTIONS: 40, breakdown.TAIL: 20, breakdown.BLOCKS: 20}
    for part, ms in {**expected, breakdown.REST: 30}.items():
        assert times[part] >= factor * ms, (part, times)  # what one part lacks, another has


@needs_timm
@needs_cpu_kernels
@pytest.mark.parametrize("training", [False, True])
def test_time_of_fused_tails(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of the operators: they run as without the profiler, with no hook on a layer."""
    import timm

    fused = []

    def counting(namespace: str, tail: Any, *tensors: Any) -> Any:
        fused.append(tail.gate is not None)
        time.sleep(0.02)  # which is none of the operators'
        return apply_tail(namespace, tail, *tensors)

    apply_tail = deferred.apply_tail
    monkeypatch.setattr(deferred, "apply_tail", counting)
    options: dict[str, Any] = {"layers": (1, 1, 1, 1), "block_args": {"attn_layer": "se"}}
    eager = timm.create_model("resnet18", **options).train(training)
    tails = copy.deepcopy(eager)
    names = [e.name for e in demo.accelerate(tails, "cpu", fuse="tail").changed]
    x = torch.randn(2, 3, 64, 64)

    def call(model: nn.Module) -> None:
        with torch.set_grad_enabled(training):
            y = model(x)
        if training:
            y.sum().backward()

    call(tails)
    of_call = list(fused)
    assert sum(of_call) == 4
    calls = [(model, functools.partial(call, model)) for model in (eager, tails)]
    of_eager, of_tails = breakdown.breakdown(calls, names, "cpu", 1)
    assert fused == 2 * of_call, "a hook stopped one"
    assert of_eager[breakdown.FUSED] == 0 < of_tails[breakdown.FUSED]
    assert of_tails[breakdown.TAIL] >= 20 * len(of_call) > 2 * of_tails[breakdown.FUSED]
    assert 0 < of_tails[breakdown.BLOCKS] < of_eager[breakdown.BLOCKS]
    assert of_tails[breakdown.CONVOLUTIONS] > 0


@needs_timm
@needs_cpu_kernels
def test_demo_check_notices_a_small_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")

    def tampered(model: nn.Module, backend: str, **options: str) -> object:
        made = demo_accelerate(model, backend, **options)
        with torch.no_grad():
            model.get_submodule("layer3.2.se").fc2.weight.mul_(1.001)  # type: ignore[union-attr]
        return made

    demo_accelerate = demo_check.accelerate
    monkeypatch.setattr(demo_check, "accelerate", tampered)
    model, images = demo._model("cpu"), demo._images(2, TINY.check_side, "cpu")
    checks, _ = demo_check.check_model(model, *images, "cpu")
    by_name = {check.what: check for check in checks}
    for what in ("outputs", "gradients", "outputs with tails", "gradients with tails"):
        assert by_name[f"float64: {what}"].wrong
    blocks = [check for check in checks if "blocks" in check.what]
    assert len(blocks) == 2 and all("layer3.2.se" in (check.wrong or "") for check in blocks)
