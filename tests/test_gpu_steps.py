"""tools/gpu_*.py: what the steps measure and check, as far as that goes without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chattn_cuda import _native
from chattn_cuda.modules import deferred
from tests import cases

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402
import gpu_kernels  # noqa: E402
import gpu_models  # noqa: E402
import gpu_results  # noqa: E402
import gpu_runner  # noqa: E402
import gpu_summary  # noqa: E402
import gpu_tails  # noqa: E402
import gpu_tests  # noqa: E402
import gpu_turns  # noqa: E402
import variants  # noqa: E402
from gpu_results import read  # noqa: E402


# ---- the steps ----------------------------------------------------------------------------------
def test_kernels_are_known_by_their_names() -> None:
    def name(kernel: str, what: str) -> str:
        return (
            f"void chattn::cuda::{kernel}<chattn::bfloat16_t, 8, chattn::cuda::{what} >"
            f"(chattn::cuda::ReduceIo<chattn::bfloat16_t, chattn::cuda::{what} >, long, int)"
        )

    t = "chattn::bfloat16_t"
    known = {
        name("reduce_rows", f"SumOp<{t}, 1>"): ("reduce SumOp", 1),
        name("reduce_tiles", f"SumOp<{t}, (int)2>"): ("reduce SumOp", 2),
        name("reduce_planes", f"DotOp<{t}, (int)2, (bool)1>"): ("reduce DotOp", 3),
        name("apply_rows", f"MlpForwardGate<{t} >"): ("apply MlpForwardGate", 2),
        name("apply_spans", f"MlpBackwardGate<{t} >"): ("apply MlpBackwardGate", 2),
        name("apply_rows", f"SoftmaxGate<{t}, 2, false>"): ("apply SoftmaxGate", 3),
        name("contract", f"GateGradRows<{t}>"): ("contract GateGradRows", None),
        "void chattn::cuda::weight_grads<chattn::bfloat16_t>(int)": ("weight_grads", None),
        "ampere_bf16_s16816gemm_64x64": ("others", None),
    }
    for text, (short, maps) in known.items():
        assert gpu_kernels.short_name(text) == short
        assert gpu_kernels.maps_moved(text) == maps


def test_every_pass_is_known() -> None:
    """What moves maps is told by the operation or gate that a pass is given."""
    sources = "".join(path.read_text() for path in (ROOT / "csrc").rglob("*.cu*"))
    parts = re.findall(r"^struct (\w+(?:Op|Gate))\b[^;]*\{", sources, re.MULTILINE)
    assert {"SumOp", "SpreadGate"} <= set(parts)
    for part in parts:
        assert gpu_kernels.maps_moved(f"chattn::cuda::{part}<float, 2>"), (
            "add it to its block's reads"
        )


def test_kernels_of_a_call() -> None:
    """Sums over launches of the same kind; a launch more or less than there were calls is noise."""
    sums = "chattn::cuda::reduce_rows<float, 4, chattn::cuda::SumOp<float, 1> >(int)"
    small = "chattn::cuda::contract<float>(int)"
    events = [(sums, us) for us in (9.0, 10.0, 11.0, 30.0)] + [(small, 2.0)] * 6 + [("gemm", 1.0)]
    events += [("Memset (Device)", 50.0)] * 9  # what overwrites the cache
    assert gpu_kernels.per_call(events, 3) == {
        "reduce SumOp": (10.5, 1),
        "contract": (4.0, None),
        "others": (1.0, None),
    }


def test_tests_that_failed_come_first() -> None:
    names = [
        "test_numerics.py::test_against_float64[se-cuda-float32]",
        "test_numerics.py::test_against_float64[se-triton-float32]",
        "test_parity.py::test_trains_like_timm[cuda]",
        "test_numerics.py::test_against_float64[sk-cuda-norm]",
    ]
    assert sorted(names, key=gpu_tests.rank) == [names[2], names[3], names[0], names[1]]


@pytest.mark.parametrize("parts", [1, 2, 5, 20])
def test_parts_of_the_tests_make_all_of_them(parts: int) -> None:
    names = [f"test_{k}[{i}]" for k in ("compile", "prologue", "other-triton") for i in range(7)]
    shares = [gpu_tests.share_of(names, names, i, parts) for i in range(parts)]
    assert sorted(sum(shares, [])) == sorted(names)
    assert all(share == sorted(share, key=gpu_tests.rank) for share in shares)


def test_plugin_tells_what_failed_and_stops_in_time(records: Path, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import time, pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\n"
        "def test_compile_bad(): assert 1 == 2\n"
        "@pytest.fixture\n"
        "def broken(): yield; raise ValueError('at its end')\n"
        "def test_teardown(broken): pass\n"
        "def test_slow(): time.sleep(1.5)\n"
        "def test_never(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", ".", "-q", "-m", "gpu", "-p", "gpu_tests"]
    # Python's start, pytest's and the slow test's second: the last test does not fit.
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    env[gpu_results.END] = str(time.time() + 600)
    counted = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    total = gpu_summary.test_counts(read(records))
    assert total == {"collected": 5, "passed": 3, "failed": 2, "skipped": 0, "left": 0}, counted
    assert [r["text"] for r in read(records) if r["what"] == "problem"] == [
        "test_it.py::test_compile_bad: assert 1 == 2",
        "test_it.py::test_teardown: ValueError: at its end",
    ]
    records.unlink()
    env[gpu_results.END] = str(time.time())
    assert subprocess.run(command, cwd=tmp_path, env=env, capture_output=True).returncode == 2
    assert gpu_summary.test_counts(read(records))["left"] == 4


def test_sanitizer_note() -> None:
    text = "RESULT 192 of 192 calls\n===== ERROR SUMMARY: 0 errors\n"
    assert gpu_check.sanitizer_note(text) == "ERROR SUMMARY: 0 errors; 192 of 192 calls"
    assert gpu_check.sanitizer_note("Error: Device not supported. x") == "Device not supported. x"
    assert gpu_check.sanitizer_note("Segmentation fault\n") == "Segmentation fault"


def test_steps_know_every_block() -> None:
    import gpu_steps

    blocks = {name for name, block in cases.BLOCKS.items() if block.op}  # others have no operators
    assert set(gpu_steps.BLOCKS) == blocks
    for rehearse in (False, True):
        assert {case.block for case in gpu_steps.cases(rehearse)} == blocks


# ---- turns --------------------------------------------------------------------------------------
class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sin()


def subject(training: bool = False) -> variants.Subject:
    x = torch.linspace(0, 1, 8)

    def call(module: Any) -> Sequence[torch.Tensor]:
        if not training:
            with torch.inference_mode():
                return [module(x)]
        y = module(x)
        return [y, *torch.autograd.grad(y.sum(), list(module.parameters()))]

    return variants.Subject("models", "net", "ms", Scale(), call, 0, rounds=5, repeat=1)


@pytest.mark.parametrize("training", [False, True])
def test_compiling_ahead_runs_nothing(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward are compiled, and then run as they are."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    compiled, ran = [], []

    def compiler(graph: Any, examples: Any) -> Any:
        compiled.append(graph)

        def run(*arguments: Any) -> Any:
            ran.append(graph)
            return graph(*arguments)

        return make_boxed_func(run)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: backend)
    of_row = subject(training)
    ahead = variants.Ahead(of_row.module, of_row.call)
    assert ahead.graphs == 1 and not ran
    assert len(compiled) == (2 if training else 1)
    for got, want in zip(of_row.call(ahead.module), of_row.call(of_row.module), strict=True):
        torch.testing.assert_close(got, want)
    assert len(ran) == len(compiled) == (2 if training else 1)
    torch._dynamo.reset()


def test_a_row_is_measured(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "COMPILER", "aot_eager")
    of_row = subject()
    assert gpu_turns.measure_in_turn(of_row, variants.make_ready(of_row, variants.VARIANTS), 0.1)
    ((unit, times),) = gpu_results.rows(read(records)).values()
    assert unit == "ms" and list(times) == list(variants.VARIANTS)
    assert all(t.count == 5 or t.count >= 3 for t in times.values())
    assert all(t.error == 0 for t in times.values())
    torch._dynamo.reset()


@pytest.mark.parametrize("row", gpu_tails.rows(rehearse=True), ids=str)
def test_a_tail_is_measured(
    row: gpu_tails.Row, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In four variants, two of which run the operators, eager and compiled."""
    if torch.cuda.is_available() or _native.why_not_cpu() is not None:
        pytest.skip("needs the CPU kernels, and no GPU")
    calls = []

    def counting(*arguments: Any) -> Any:
        calls.append(torch.compiler.is_compiling())
        return apply_tail(*arguments)

    apply_tail = deferred.apply_tail
    monkeypatch.setattr(deferred, "apply_tail", counting)
    monkeypatch.setattr(variants, "COMPILER", "aot_eager")
    assert gpu_tails.step(row) == 0
    found = read(records)
    assert [r["text"] for r in found if r["what"] == "problem"] == []
    ((table, name), (unit, times)), = gpu_results.rows(found).items()  # fmt: skip
    assert (table, name, unit) == (gpu_tails.TABLE, str(row), "us")
    assert tuple(times) == gpu_tails.VARIANTS
    assert calls
    torch._dynamo.reset()


def test_a_variant_that_fails_is_a_problem_and_the_others_are_measured(records: Path) -> None:
    of_row = subject()
    off = Scale()
    off.weight.data += 1

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of\nmemory")

    variants.measure(of_row, {"eager": Scale(), "accelerated": Broken(), "both": off}, 0.1)
    found = read(records)
    assert [r["text"] for r in found if r["what"] == "problem"] == [
        "net, accelerated: RuntimeError: out of memory",
        "net, both: differs from eager by 4.5e-01",
    ]
    ((_, times),) = gpu_results.rows(found).values()
    assert list(times) == ["eager", "both"]


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpu_runner.TURN, str(tmp_path / "turn"))
    monkeypatch.setenv(gpu_runner.CORES, ",".join(map(str, gpu_runner.cores())))
    monkeypatch.setenv(gpu_results.END, str(time.time() + 2))
    with gpu_turns.turn(1):  # another file description, as in another process
        start = time.monotonic()
        with pytest.raises(gpu_results.OutOfTime), gpu_turns.turn(1):
            pass
        assert time.monotonic() - start > 0.5, "it waits as long as there is time"
    with gpu_turns.turn(0.1):
        pass


# ---- the plans ----------------------------------------------------------------------------------
@pytest.mark.parametrize("rehearse", [False, True])
def test_every_model_is_measured(rehearse: bool) -> None:
    rows = gpu_models.rows(rehearse)
    names = {step.name for step in gpu_models.plan(rehearse)}
    assert {str(row) for row in rows} <= names
    assert set(gpu_models.promised(rehearse)) == {(gpu_models.TABLE, str(row)) for row in rows}
    assert sorted(map(str, gpu_models.by_value(rows))) == sorted(map(str, rows))
    if not rehearse:
        assert len(rows) == 3 * 7
        assert [row.training for row in gpu_models.by_value(rows)[:4]] == [True] * 3 + [False]


def test_a_network_is_compiled_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gpu_runner.SHARED, str(tmp_path))
    first, other, *_ = gpu_models.rows(rehearse=True)
    assert [gpu_models._claim(row) for row in (first, first, other)] == [True, False, True]


@pytest.mark.parametrize("plan", [gpu_check.plan, gpu_models.plan])
@pytest.mark.parametrize("rehearse", [False, True])
def test_steps_wait_for_steps_that_exist(plan: Any, rehearse: bool) -> None:
    steps = plan(rehearse)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    known = {"build", "import", *names}
    assert all({*step.needs, *step.after} <= known for step in steps)
