"""Everything worth knowing about this package on a machine with a GPU, in at most eight minutes.

    make gpu-check                             or: python tools/gpu_check.py
    python tools/gpu_check.py --rehearse       the same steps on the CPU, with tiny sizes

Builds the extension in place for the GPU that is here, with this Python, and needs no network:
torch with CUDA, nvcc, g++, pytest and timm are enough. Each step has a time limit; one that fails
or takes too long is reported, and the next one starts. The summary and all logs go to $OUT
(default: bench/results).
"""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 470
RESERVE = 10  # for the summary
BENCH_SECONDS = 100  # that other steps leave to the benchmark, the last one


# ---- steps as processes -------------------------------------------------------------------------
@dataclass
class Step:
    """A step and what came of it.

    Attributes:
        name: What the summary calls it.
        limit: Seconds that it may take.
        log: File that its output is appended to.
        command: The process; empty where it cannot run, and `note` says why.
        status: "ok", "failed", "timed out" or "skipped".
        note: One line for the summary.
        seconds: What it took.
    """

    name: str
    limit: float
    log: str
    command: list[str] = field(default_factory=list)
    status: str = "skipped"
    note: str = ""
    seconds: float = 0.0


def run_step(step: Step, folder: Path, env: dict[str, str], limit: float) -> str:
    """Run a step's process; returns its output, which is also appended to the step's log."""
    start = time.monotonic()
    # A file, not a pipe: processes that outlive a killed step would keep a pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as sink:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=sink,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            step.status = "ok" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the session of this step only
            process.wait()
            step.status = "timed out"
        sink.seek(0)
        output = sink.read()
    step.seconds = time.monotonic() - start
    with (folder / step.log).open("a") as file:
        file.write(f"==== {step.name}: {step.status}, {step.seconds:.1f} s\n{output}\n")
    return output


def last_line(output: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def pytest_note(output: str) -> str:
    """The line with the counts, or how far it came."""
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)[^=\n]*", output)
    if counts:
        return str(counts[-1]).strip()
    done = sum(len(m) for m in re.findall(r"^([.sFEx]+)(?: +\[|$)", output, re.MULTILINE))
    return f"stopped after {done} tests"


def marked(output: str) -> str:
    """The line that a step of this file marked as its result, else the last one."""
    found = re.findall(r"^RESULT (.*)$", output, re.MULTILINE)
    return str(found[-1]) if found else last_line(output)


def line_with(pattern: str, output: str) -> str:
    """What a pattern's group matches, else the last line."""
    match = re.search(pattern, output)
    return match[1].strip() if match else last_line(output)


def sanitizer_note(output: str) -> str:
    """What compute-sanitizer found."""
    if match := re.search(r"Device not supported[^\n]*", output):
        return match[0].strip()
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    return str(found[-1]) if found else last_line(output)


# ---- what a step of this file runs on -----------------------------------------------------------
def device() -> str:
    """Returns "cuda", or "cpu" in a rehearsal."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def se_inputs(shape: tuple[int, ...], dtype: Any, layout: str, seed: int = 0) -> dict[str, Any]:
    """The tensors of a squeeze-and-excitation call, on the CPU."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Any:
        return torch.randn(size, generator=generator).to(dtype)

    n, c, h, w = shape
    rd = max(1, c // 16)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return {
        "x": random(n, c, h, w).contiguous(memory_format=memory_format),
        "dy": random(n, c, h, w).contiguous(memory_format=memory_format),
        "w1": random(rd, c) / c**0.5,
        "b1": random(rd),
        "w2": random(c, rd) / rd**0.5,
        "b2": random(c),
    }


def se_call(ops: Any, t: dict[str, Any], add_maxpool: bool = False) -> dict[str, Any]:
    """Forward and backward through one namespace of operators; results by name."""
    gate = (1, 0.0, 10, add_maxpool)  # ReLU, its parameter, sigmoid
    y, *saved = ops.se_forward(t["x"], t["w1"], t["b1"], t["w2"], t["b2"], *gate)
    grads = ops.se_backward(t["dy"], None, t["x"], *saved, t["w1"], t["w2"], *gate, True, True)
    names = ("y", "pooled", "peak", "hidden", "gate", "dx", "dw1", "db1", "dw2", "db2")
    return dict(zip(names, (y, *saved, *grads), strict=True))


def cases(rehearse: bool) -> Iterator[tuple[tuple[int, ...], Any, str, bool]]:
    """(shape, dtype, layout, add_maxpool) for comparisons and sanitizers: every kernel once."""
    import torch

    shapes = [(3, 48, 7, 7), (2, 66, 20, 20), (1, 33, 33, 40)]
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    if rehearse:
        shapes, dtypes = shapes[:1], dtypes[:2]
    yield from itertools.product(shapes, dtypes, ("nchw", "channels_last"), (False, True))


def step_sanitized(rehearse: bool) -> int:
    """Every CUDA kernel once; run under compute-sanitizer."""
    import torch

    import chattn_cuda  # noqa: F401

    count = 0
    for shape, dtype, layout, add_maxpool in cases(rehearse):
        tensors = {k: v.to(device()) for k, v in se_inputs(shape, dtype, layout).items()}
        se_call(torch.ops.chattn_cuda, tensors, add_maxpool)
        count += 1
    if device() == "cuda":
        torch.cuda.synchronize()
    print(f"RESULT {count} calls forward and backward")
    return 0


def step_compare(rehearse: bool) -> int:
    """The kernels on the GPU against the same kernels executed on the CPU."""
    import torch

    import chattn_cuda  # noqa: F401
    from tests import host_backend

    if reason := host_backend.load():
        print(f"RESULT {reason}")
        return 1
    worst, problems, count = 0.0, [], 0
    for shape, dtype, layout, add_maxpool in cases(rehearse):
        inputs = se_inputs(shape, dtype, layout)
        expected = se_call(torch.ops.chattn_cuda_host, inputs, add_maxpool)
        tensors = {k: v.to(device()) for k, v in inputs.items()}
        got = se_call(torch.ops.chattn_cuda, tensors, add_maxpool)
        again = se_call(torch.ops.chattn_cuda, tensors, add_maxpool)
        label = f"{shape} {dtype} {layout}{' max' if add_maxpool else ''}"
        line = []
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        for name, e in expected.items():
            if e.numel() == 0:
                continue
            g = got[name].cpu()
            if not torch.equal(g, again[name].cpu()):
                problems.append(f"{label}: {name} differs from run to run")
            difference = (g.double() - e.double()).abs().max() / e.double().abs().max()
            # Contraction to FMA and another exp: some units in the last place, then one rounding.
            allowed = 512 * torch.finfo(acc).eps
            if e.dtype != acc:
                allowed += torch.finfo(e.dtype).eps
            if not float(difference) <= allowed:
                problems.append(f"{label}: {name} off by {difference:.1e}, above {allowed:.1e}")
            worst = max(worst, float(difference) / allowed)
            line.append(f"{name} {difference:.1e}")
        print(label, ", ".join(line))
        count += 1
    print("\n".join(problems))
    print(f"RESULT {count} cases, {len(problems)} problems, at most {worst:.2f} of the limit")
    return 1 if problems else 0


def step_graph(rehearse: bool) -> int:
    """Forward and backward captured in a CUDA graph, replayed on other numbers."""
    import torch

    from chattn_cuda import backends
    from chattn_cuda.modules import SqueezeExcite

    def run(module: Any, x: Any, dy: Any) -> list[Any]:
        y = module(x)
        return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]

    names = [b for b in ("cuda", "triton") if backends.why_not(b, device()) is None]
    if rehearse:
        names = ["cpu"]
    for backend in names:
        module = SqueezeExcite(64, backend=backend).to(device())
        x = torch.randn(4, 64, 14, 14, device=device()).requires_grad_()
        dy = torch.randn_like(x)
        if rehearse:
            run(module, x, dy)
            continue
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, looks up the stream, fills the allocator
            for _ in range(3):
                run(module, x, dy)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(module, x, dy)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
            dy.copy_(torch.randn_like(dy))
        graph.replay()
        torch.cuda.synchronize()
        replayed = [t.clone() for t in captured]
        for name, a, b in zip(("y", "dx", "w1", "b1", "w2", "b2"), replayed, run(module, x, dy), strict=True):  # fmt: skip  # noqa: E501
            if not torch.equal(a, b):
                print(f"RESULT {backend}: {name} of the replay differs")
                return 1
    print(f"RESULT {', '.join(names) or 'no backend'}: the replay equals a plain run")
    return 0 if names else 1


# ---- benchmark ----------------------------------------------------------------------------------
STAGES = ((256, 56), (512, 28), (1024, 14), (2048, 7))
# Maps moved, by direction: with every input read once, and as the two-pass kernels do.
SINGLE_READ = {"forward": 2, "forward+backward": 5}
TWO_PASS = {"forward": 3, "forward+backward": 7}


@dataclass(frozen=True)
class Row:
    """What is measured."""

    shape: tuple[int, int, int, int]
    dtype: str
    layout: str
    direction: str


def bench_rows(rehearse: bool) -> list[Row]:
    """Rows, those that matter most first."""
    if rehearse:
        shapes = [(2, 32, 14, 14), (2, 64, 7, 7)]
        return [Row(s, "float32", "nchw", d) for s in shapes for d in SINGLE_READ]
    rows = []
    for n, dtype, layout in itertools.product(
        (128, 32, 64), ("bfloat16", "float32"), ("channels_last", "nchw")
    ):
        rows += [
            Row((n, c, h, h), dtype, layout, direction)
            for direction in ("forward+backward", "forward")
            for c, h in STAGES
        ]
    return rows


def bench_row(row: Row, names: list[str], seconds: float) -> dict[str, float]:
    """Median milliseconds by implementation; every result is compared with eager PyTorch's."""
    import torch
    from timm.layers import SEModule

    import chattn_cuda
    from chattn_cuda.cli.measure import errors, time_calls

    dtype = getattr(torch, row.dtype)
    memory_format = (
        torch.channels_last if row.layout == "channels_last" else torch.contiguous_format
    )
    where = device()
    size = torch.Size(row.shape).numel() * dtype.itemsize
    copies = 1
    if where == "cuda":  # so many that none is in the L2 cache when it is next read
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        copies = max(2, min(16, 2 * cache // size + 1))
    training = row.direction != "forward"

    def tensor() -> Any:
        values = torch.randn(row.shape, device=where, dtype=dtype)
        return values.contiguous(memory_format=memory_format)

    torch.manual_seed(0)
    peer = SEModule(row.shape[1]).to(where, dtype)
    sets = [(tensor().requires_grad_(training), tensor()) for _ in range(copies)]

    def make(name: str) -> Callable[[], list[Any]]:
        module: Any = copy.deepcopy(peer)
        if name == "torch.compile":
            module = torch.compile(module, fullgraph=True, dynamic=False)
        elif name != "eager":
            chattn_cuda.accelerate(module, name)
        turn = itertools.cycle(sets)

        def call() -> list[Any]:
            x, dy = next(turn)
            if not training:
                with torch.no_grad():
                    return [module(x)]
            y = module(x)
            return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]

        return call

    torch._dynamo.reset()
    calls: dict[str, Callable[[], list[Any]]] = {}
    expected = make("eager")()
    # Enough to notice nonsense; the tests know the numbers better. Eager uses TF32 for float32.
    limit = 0.01 if dtype == torch.float32 else 0.1
    for name in names:
        call = make(name)
        for got, want in zip(call(), expected, strict=True):
            error = errors(got[:8], want[:8])[1]
            if not error <= limit:
                raise AssertionError(f"{name} is off by {error:.1e} from eager PyTorch")
        calls[name] = call
    del expected
    samples = time_calls(calls, where, seconds=seconds, max_rounds=50, repeat=copies)
    return {name: sorted(times)[len(times) // 2] for name, times in samples.items()}


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product


def step_bench(rehearse: bool, folder: Path, seconds: float) -> int:
    """Rows without torch.compile first, then with it as far as the time goes."""
    import torch

    from chattn_cuda import backends
    from chattn_cuda.cli.bench import quiet
    from chattn_cuda.cli.environment import environment

    quiet()
    end = time.monotonic() + seconds
    ours = ["cpu"] if rehearse else ["cuda", "triton"]
    ours = [b for b in ours if backends.why_not(b, device()) is None]
    results: dict[Row, dict[str, float]] = {}
    problems: list[str] = []
    conditions = environment(device())

    def measure(row: Row, names: list[str], each: float) -> None:
        try:
            results.setdefault(row, {}).update(bench_row(row, names, each))
        except Exception as error:
            text = f"{row}: {', '.join(names)}: {type(error).__name__}: {error}"
            problems.append(text.splitlines()[0][:300])
        if device() == "cuda":
            torch.cuda.empty_cache()
        save(folder, results, conditions.line(), problems)  # what is there counts, if time runs out

    rows = bench_rows(rehearse)
    for row in rows:
        if time.monotonic() > end - seconds * 0.45:
            break
        measure(row, ["eager", *ours], 0.3)
    for row in [r for r in rows if r in results and results[r]]:
        if time.monotonic() > end - 12:
            break
        # Eager again: ratios are taken within one measurement only, so that is what is kept.
        measure(row, ["eager", "torch.compile", *ours], 0.3)
    print(conditions.line())
    print("\n".join(table(results)))
    print("\n".join(problems))
    print(f"RESULT {summary(results, ours)}; {len(problems)} problems")
    return 0 if results and not problems else 1


def summary(results: dict[Row, dict[str, float]], ours: list[str]) -> str:
    """Geometric means of the ratios."""
    parts = [f"{sum(map(bool, results.values()))} rows"]
    for name, base in itertools.product(ours, ("eager", "torch.compile")):
        ratios = [m[base] / m[name] for m in results.values() if name in m and base in m]
        if ratios:
            parts.append(f"{name} {geometric_mean(ratios):.2f}x {base} ({len(ratios)})")
    return ", ".join(parts)


def figures(row: Row, ms: float) -> tuple[float, float]:
    """(GB/s of the bytes that two passes move, GB/s of the single-read floor's bytes)."""
    n, c, h, w = row.shape
    size = n * c * h * w * {"float32": 4, "bfloat16": 2}[row.dtype]
    return (
        TWO_PASS[row.direction] * size / ms / 1e6,
        SINGLE_READ[row.direction] * size / ms / 1e6,
    )


def table(results: dict[Row, dict[str, float]]) -> list[str]:
    """A line per row: microseconds, and GB/s of the two passes' bytes."""
    names = list(dict.fromkeys(name for r in results.values() for name in r))
    lines = [f"{'row':54}" + "".join(f"{name + ' us':>18} {'GB/s':>6}" for name in names)]
    for row, times in results.items():
        label = f"{'x'.join(map(str, row.shape))} {row.dtype} {row.layout} {row.direction}"
        cells = [
            f"{1e3 * times[n]:18.1f} {figures(row, times[n])[0]:6.0f}"
            if n in times
            else f"{'-':>18} {'-':>6}"  # noqa: E501
            for n in names
        ]
        lines.append(f"{label:54}" + "".join(cells))
    return lines


def save(
    folder: Path, results: dict[Row, dict[str, float]], conditions: str, problems: list[str]
) -> None:
    """Write gpu-bench.csv and gpu-bench.txt."""
    with (folder / "gpu-bench.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["n", "c", "h", "w", "dtype", "layout", "direction", "implementation", "ms",
                         "two_pass_gb_s", "single_read_floor_gb_s", "conditions"])  # fmt: skip
        for row, times in results.items():
            for name, ms in times.items():
                two_pass, floor = figures(row, ms)
                writer.writerow([*row.shape, row.dtype, row.layout, row.direction, name,
                                 f"{ms:.5f}", f"{two_pass:.1f}", f"{floor:.1f}", conditions])  # fmt: skip  # noqa: E501
    lines = [conditions, *table(results), *problems]
    (folder / "gpu-bench.txt").write_text("\n".join(lines) + "\n")


# ---- all of it ----------------------------------------------------------------------------------
def architecture() -> str | None:
    """The GPU's compute capability, such as "9.0"; None without a GPU."""
    code = (
        "import torch; print('%d.%d' % torch.cuda.get_device_capability()"
        " if torch.cuda.is_available() else '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return last_line(done.stdout) or None


def compute_sanitizer() -> str | None:
    """Where it is installed."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [f"{home}/{sub}" for home in homes if home for sub in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *folders]))


def plan(arch: str | None, rehearse: bool) -> list[Step]:
    """The steps, in order."""
    python, own = sys.executable, [sys.executable, str(Path(__file__).resolve())]
    flags = ["--rehearse"] if rehearse else []

    def internal(name: str) -> list[str]:
        return [*own, *flags, "--step", name]

    build = [python, "setup.py", "build_ext", "--inplace"]
    if rehearse:  # must not replace what is built here
        scratch = str(ROOT / "build" / "gpu-check")
        build = [python, "setup.py", "build_ext", "--build-lib", scratch, "--build-temp", scratch]
    tests = [python, "-m", "pytest", "tests", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rfE",
             "--tb=short", "--maxfail=50"]  # fmt: skip
    if importlib.util.find_spec("xdist") and not rehearse:
        tests += ["-n", str(min(8, os.cpu_count() or 1))]
    steps = [
        Step("build", 150, "gpu-build.log", build),
        Step("doctor", 40, "gpu-checks.log", [python, "-m", "chattn_cuda", "doctor"]),
        Step("CUDA graph", 40, "gpu-checks.log", internal("graph")),
        Step("host execution against GPU", 110, "gpu-checks.log", internal("compare")),
        Step("tests on the GPU, CUDA", 80, "gpu-tests.log", [*tests, "-k", "not triton"]),
        Step("tests on the GPU, Triton", 110, "gpu-tests.log", [*tests, "-k", "triton"]),
    ]
    sanitizer = compute_sanitizer()
    for tool in ("memcheck", "racecheck"):
        step = Step(f"compute-sanitizer {tool}", 60, "gpu-checks.log")
        if sanitizer is None:
            step.note = "not installed"
        elif arch is None:
            step.note = "no GPU"
        else:
            step.command = [sanitizer, f"--tool={tool}", "--kernel-regex", "kns=chattn",
                            "--error-exitcode=9", *internal("sanitized")]  # fmt: skip
        steps.append(step)
    if rehearse:
        calls = internal("sanitized")
        steps.append(Step("calls for compute-sanitizer", 60, "gpu-checks.log", calls))
    steps.append(Step("benchmark", 200, "gpu-checks.log", internal("bench")))
    return steps


NOTES: dict[str, Callable[[str], str]] = {
    "build": functools.partial(line_with, r"chattn_cuda: CUDA kernels (.*)"),
    "doctor": functools.partial(line_with, r"\bGPU(?: 0)? +(.*)"),
    "tests on the GPU, CUDA": pytest_note,
    "tests on the GPU, Triton": pytest_note,
    "compute-sanitizer memcheck": sanitizer_note,
    "compute-sanitizer racecheck": sanitizer_note,
}


def main() -> int:
    """Run all steps, or one; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check and measure chattn_cuda on a GPU.")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.step:
        sys.path.insert(0, str(ROOT))
        if arguments.step == "bench":
            return step_bench(arguments.rehearse, folder, arguments.seconds)
        steps = {"graph": step_graph, "compare": step_compare, "sanitized": step_sanitized}
        return steps[arguments.step](arguments.rehearse)

    start = time.monotonic()
    arch = architecture()
    if arch is None and not arguments.rehearse:
        print("torch finds no GPU here; --rehearse runs the steps on the CPU", file=sys.stderr)
        return 2
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OUT": str(folder)}
    if arch:
        env.update(TORCH_CUDA_ARCH_LIST=arch, CHATTN_BUILD_CUDA="1")
    else:
        env.update(CHATTN_BUILD_CUDA="0")
    for name in ("gpu-build.log", "gpu-checks.log", "gpu-tests.log"):
        (folder / name).unlink(missing_ok=True)
    done = plan(arch, arguments.rehearse)
    for i, step in enumerate(done, 1):
        left = TOTAL_SECONDS - RESERVE - (time.monotonic() - start)
        limit = min(step.limit, left if step.name == "benchmark" else left - BENCH_SECONDS)
        if step.command and limit < 5:
            step.note = "no time left"
        elif step.command:
            print(f"[{i}/{len(done)}] {step.name} (at most {limit:.0f} s)", flush=True)
            if step.name == "benchmark":
                inner = min(25.0, limit) if arguments.rehearse else limit - 10
                step.command += ["--seconds", f"{inner:.0f}"]
            output = run_step(step, folder, env, limit)
            step.note = NOTES.get(step.name, marked)(output)
            if step.status != "ok":
                print(output[-3000:], flush=True)
            if "Device not supported" in step.note:
                step.status = "skipped"
        write_summary(done, folder, arch, time.monotonic() - start)
    print((folder / "gpu-check.txt").read_text())
    bench = folder / "gpu-bench.txt"
    if bench.exists():
        print(bench.read_text())
    print(f"everything is in {folder}")
    return 1 if any(step.status in ("failed", "timed out") for step in done) else 0


def write_summary(steps: list[Step], folder: Path, arch: str | None, seconds: float) -> None:
    """Write gpu-check.txt and gpu-check.json."""
    where = f"compute capability {arch}" if arch else "a rehearsal on the CPU"
    lines = [f"gpu-check on {where}, {seconds:.0f} s", ""]
    lines.append(f"{'step':30}{'result':12}{'seconds':>8}  note")
    lines.append("-" * 100)
    for step in steps:
        lines.append(f"{step.name:30}{step.status:12}{step.seconds:8.1f}  {step.note[:200]}")
    (folder / "gpu-check.txt").write_text("\n".join(lines) + "\n")
    data = {"compute_capability": arch, "seconds": seconds, "steps": [asdict(s) for s in steps]}
    (folder / "gpu-check.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
