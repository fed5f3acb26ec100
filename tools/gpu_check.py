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
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu-check"
TOTAL_SECONDS = 470
RESERVE = 10  # for the summary
BENCH_SECONDS = 100  # that other steps leave to the benchmark, the last one
INNER_SECONDS = 8  # that a step with a time limit of its own ends earlier
NO_TESTS, TIMED_OUT = 5, 124


# ---- steps as processes -------------------------------------------------------------------------
@dataclass
class Step:
    """A step and what came of it.

    Attributes:
        name: What the summary calls it.
        limit: Seconds that it may take.
        log: File that its output is appended to.
        command: The process; empty where it cannot run, and `note` says why.
        timed: Whether it takes "--seconds", and ends by itself.
        cwd: Where it runs.
        status: "ok", "failed", "timed out" or "skipped".
        note: One line for the summary.
        seconds: What it took.
    """

    name: str
    limit: float
    log: str
    command: list[str] = field(default_factory=list)
    timed: bool = False
    cwd: Path = ROOT
    status: str = "skipped"
    note: str = ""
    seconds: float = 0.0


def run_step(step: Step, folder: Path, env: dict[str, str], limit: float) -> str:
    """Run a step's process; returns its output, which is also appended to the step's log."""
    start = time.monotonic()
    step.cwd.mkdir(parents=True, exist_ok=True)
    # A file, not a pipe: processes that outlive a killed step would keep a pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as sink:
        process = subprocess.Popen(
            step.command, cwd=step.cwd, env=env, stdin=subprocess.DEVNULL, stdout=sink,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            step.status = {0: "ok", TIMED_OUT: "timed out"}.get(code, "failed")
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


# ---- tests in several processes ----------------------------------------------------------------
def step_tests(rehearse: bool, select: str, seconds: float) -> int:
    """The tests marked `gpu`, in parts that run side by side: most of their time is compilation."""
    count = 1 if rehearse else max(1, min(12, (os.cpu_count() or 1) - 2))
    command = [sys.executable, "-m", "pytest", "tests", "-q", "-m", "gpu", "-k", select, "-rfE",
               "-p", "no:cacheprovider", "--tb=short", "--maxfail=20",
               "--continue-on-collection-errors"]  # fmt: skip
    if rehearse:  # they are all skipped: no GPU
        command += ["-rs"]
    end = time.monotonic() + seconds
    parts = []
    for i in range(count):
        sink = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        env = {**os.environ, "CHATTN_TEST_PART": f"{i}/{count}"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=sink,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        parts.append((process, sink))
    notes, status = [], 0
    for process, sink in parts:
        try:
            code = process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = TIMED_OUT
        sink.seek(0)
        output = sink.read()
        print(output)
        notes.append(pytest_note(output))
        if code != NO_TESTS:
            status = max(status, code)
    print(f"RESULT {total_note(notes)}, {count} processes")
    return status


def total_note(notes: list[str]) -> str:
    """The sum of several of pytest's lines with counts."""
    counts: dict[str, int] = {}
    for number, what in re.findall(r"(\d+) (passed|failed|skipped|error)", " ".join(notes)):
        counts[what] = counts.get(what, 0) + int(number)
    unfinished = sum("stopped after" in note for note in notes)
    text = ", ".join(f"{number} {what}" for what, number in counts.items())
    return f"{text or 'no tests'}{f'; {unfinished} unfinished' if unfinished else ''}"


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

    def internal(name: str, *more: str) -> list[str]:
        return [*own, *flags, "--step", name, *more]

    # From a folder without a pyproject.toml, which asks for a newer setuptools than it takes to
    # build; a rehearsal must not replace what is built here.
    library = str(BUILD if rehearse else ROOT)
    build = [python, str(ROOT / "setup.py"), "build_ext", "--build-lib", library,
             "--build-temp", str(BUILD)]  # fmt: skip
    steps = [
        Step("build", 150, "gpu-build.log", build, cwd=BUILD),
        Step("doctor", 40, "gpu-checks.log", [python, "-m", "chattn_cuda", "doctor"]),
        Step("CUDA graph", 60, "gpu-checks.log", internal("graph")),
        Step("host execution against GPU", 110, "gpu-checks.log", internal("compare")),
    ]
    for name, limit, select in (("CUDA", 90, "not triton"), ("Triton", 110, "triton")):
        command = internal("tests", "--select", select)
        step = Step(f"tests on the GPU, {name}", limit, "gpu-tests.log", command, timed=True)
        steps.append(step)
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
    steps.append(Step("benchmark", 200, "gpu-checks.log", internal("bench"), timed=True))
    return steps


NOTES: dict[str, Callable[[str], str]] = {
    "build": functools.partial(line_with, r"chattn_cuda: CUDA kernels (.*)"),
    "doctor": functools.partial(line_with, r"\bGPU(?: 0)? +(.*)"),
    "compute-sanitizer memcheck": sanitizer_note,
    "compute-sanitizer racecheck": sanitizer_note,
}


def run_internal(arguments: argparse.Namespace, folder: Path) -> int:
    """One step, in the process that gpu_check.py started for it."""
    if arguments.step == "tests":
        return step_tests(arguments.rehearse, arguments.select, arguments.seconds)
    if arguments.step == "bench":
        from gpu_bench import step_bench

        return step_bench(arguments.rehearse, folder, arguments.seconds)
    from gpu_steps import STEPS

    return STEPS[arguments.step](arguments.rehearse)


def main() -> int:
    """Run all steps, or one; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check and measure chattn_cuda on a GPU.")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--select", default="", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.step:
        sys.path.insert(0, str(ROOT))
        return run_internal(arguments, folder)

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
            if step.timed:
                inner = min(60.0, limit) if arguments.rehearse else limit - INNER_SECONDS
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
    (folder / "gpu-check.json").write_text(json.dumps(data, indent=1, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
