"""Runs steps as processes, side by side as far as cores go, until a total time is over.

Each step has a time limit. One that fails, takes too long or never gets its turn is reported, and
the others go on: what was measured by then is in the records (gpu_results.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import gpu_results

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu-check"
INNER_SECONDS = 4  # that a step is told to end before its limit
TIMED_OUT = 124

OK, FAILED, LATE, SKIPPED = "ok", "failed", "timed out", "skipped"
# Environment variables of the processes: the file that tells that a step is ready to measure; the
# file that is locked by whoever measures; a folder that the steps of a run share; the cores.
READY, TURN, SHARED = "GPU_CHECK_READY", "GPU_CHECK_TURN", "GPU_CHECK_SHARED"
CORES = "GPU_CHECK_CORES"


# ---- cores --------------------------------------------------------------------------------------
def cores() -> set[int]:
    """That this process may use."""
    return set(os.sched_getaffinity(0))


def quiet_cores(all_cores: set[int]) -> set[int]:
    """Those that whoever measures has for itself; the others compile meanwhile."""
    return set(sorted(all_cores)[:2]) if len(all_cores) >= 8 else all_cores


def other_cores(all_cores: set[int]) -> set[int]:
    """Those for everybody who does not measure."""
    return all_cores - quiet_cores(all_cores) or all_cores


# ---- a step -------------------------------------------------------------------------------------
@dataclass
class Step:
    """A step and what came of it.

    Attributes:
        name: What the summary calls it.
        command: The process; empty where it cannot run, and `note` says why.
        limit: Seconds that it may take.
        needs: Steps that must have ended well.
        after: Steps that must have ended.
        cores: How many it keeps busy until it says that it is ready to measure.
        aside: Whether it stays off the cores of whoever measures.
        note_of: Makes `note` from its output.
        cwd: Where it runs.
        env: Variables of its own.
        status: See above; None before and while it runs.
        note: One line for the summary.
        seconds: What it took.
    """

    name: str
    command: Sequence[str]
    limit: float
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    cores: int = 1
    aside: bool = False
    note_of: Callable[[str], str] = field(default=lambda output: marked(output))
    cwd: Path = ROOT
    env: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    note: str = ""
    seconds: float = 0.0


def last_line(output: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def marked(output: str) -> str:
    """The line that a step marked as its result, else the last one."""
    found = re.findall(r"^RESULT (.*)$", output, re.MULTILINE)
    return str(found[-1]) if found else last_line(output)


@dataclass
class _Running:
    step: Step
    process: subprocess.Popen[bytes]
    sink: IO[str]
    ready: Path
    start: float
    end: float


# ---- all of them --------------------------------------------------------------------------------
class Runner:
    """Runs steps in their order as soon as what they wait for has ended and cores are free.

    Args:
        steps: The steps.
        log: File that the output of every step is appended to.
        env: Of the processes.
        seconds: All time there is.
        report: Called whenever a step has ended.
    """

    def __init__(
        self,
        steps: list[Step],
        log: Path,
        env: dict[str, str],
        seconds: float,
        report: Callable[[], object] = lambda: None,
    ) -> None:
        self.steps, self.log, self.env, self.report = steps, log, dict(env), report
        self.begin = time.monotonic()
        self.end = self.begin + seconds
        self.all_cores = cores()
        self.running: list[_Running] = []
        self._scratch = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        shared = self._scratch / "shared"
        shared.mkdir()
        self.env.update({TURN: str(shared / "turn"), SHARED: str(shared)})
        self.env[CORES] = ",".join(map(str, sorted(self.all_cores)))

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begin

    def run(self) -> None:
        """Run them."""
        try:
            while True:
                for one in list(self.running):
                    self._look_after(one)
                for step in self.steps:
                    self._start(step)
                if not self.running:
                    break
                time.sleep(0.05)
        finally:
            for one in self.running:
                _kill(one.process)
            shutil.rmtree(self._scratch, ignore_errors=True)
        for step in self.steps:
            if step.status is None:
                step.status, step.note = SKIPPED, "no time left"

    def _ended(self, names: Sequence[str]) -> bool:
        return all(s.status is not None for s in self.steps if s.name in names)

    def _start(self, step: Step) -> None:
        if step.status is not None or any(one.step is step for one in self.running):
            return
        if not self._ended(step.needs + step.after):
            return
        failed = [s.name for s in self.steps if s.name in step.needs and s.status != OK]
        if failed or not step.command:
            step.status = SKIPPED
            step.note = step.note or f"without {', '.join(failed)}"
            return
        limit = min(step.limit, self.end - time.monotonic())
        if limit < INNER_SECONDS:
            step.status, step.note = SKIPPED, "no time left"
            return
        busy = sum(one.step.cores for one in self.running if not one.ready.exists())
        if busy and busy + step.cores > len(self.all_cores):
            return
        step.cwd.mkdir(parents=True, exist_ok=True)
        ready = self._scratch / str(self.steps.index(step))
        inner = time.time() + limit - INNER_SECONDS
        env = {**self.env, **step.env, gpu_results.END: f"{inner:.1f}", READY: str(ready)}
        mine = other_cores(self.all_cores) if step.aside else self.all_cores
        # A file, not a pipe: processes that outlive a killed step would keep a pipe open.
        sink = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        process = subprocess.Popen(
            step.command, cwd=step.cwd, env=env, stdin=subprocess.DEVNULL, stdout=sink,
            stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, mine),
        )  # fmt: skip
        now = time.monotonic()
        self.running.append(_Running(step, process, sink, ready, now, now + limit))

    def _look_after(self, one: _Running) -> None:
        step, code = one.step, one.process.poll()
        if code is None and time.monotonic() < one.end:
            return
        self.running.remove(one)
        if code is None:
            _kill(one.process)
            code = TIMED_OUT
        step.status = {0: OK, TIMED_OUT: LATE}.get(code, FAILED)
        step.seconds = time.monotonic() - one.start
        one.sink.seek(0)
        output = one.sink.read()
        one.sink.close()
        step.note = step.note_of(output)[:200]
        with self.log.open("a") as file:
            file.write(f"==== {step.name}: {step.status}, {step.seconds:.1f} s\n{output}\n")
        said = f"[{self.elapsed():3.0f} s] {step.name}: {step.status}, {step.seconds:.0f} s"
        print(f"{said}; {step.note}"[:110], flush=True)
        try:
            self.report()
        except Exception:  # a page that cannot be written is no reason to stop measuring
            traceback.print_exc()


def _kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)  # the session of this step only
    process.wait()


# ---- the build ----------------------------------------------------------------------------------
def fingerprint(arch: str | None) -> str:
    """Of all that the built module is made from, and for which GPU and torch."""
    digest = hashlib.sha256(f"{arch} {sys.version}".encode())
    files = [*sorted((ROOT / "csrc").rglob("*")), ROOT / "setup.py"]
    for path in (p for p in files if p.is_file()):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def build_step(arch: str | None, rehearse: bool) -> Step:
    """Builds for the GPU that is here, unless that was done before and nothing has changed.

    A rehearsal takes what is built here, however old.
    """
    command = [sys.executable, str(Path(__file__).resolve()), str(arch or "")]
    return Step(
        "build", [*command, "--any"] if rehearse else command, 170,
        cores=max(1, len(cores()) - 4), cwd=BUILD,
        note_of=lambda output: marked(output).removeprefix("chattn_cuda: "),
    )  # fmt: skip


def build(arch: str | None, take_any: bool) -> int:
    """The build as a step; returns its exit code."""
    made = BUILD / "made.json"
    wanted = {"fingerprint": fingerprint(arch)}
    if any((ROOT / "chattn_cuda").glob("_C*.so")):
        if take_any or (made.exists() and json.loads(made.read_text()) == wanted):
            print("RESULT found, as it was built before")
            return 0
    # From a folder without a pyproject.toml, which asks for a newer setuptools than it takes.
    done = subprocess.run(
        [sys.executable, str(ROOT / "setup.py"), "build_ext", "--build-lib", str(ROOT),
         "--build-temp", str(BUILD)], cwd=BUILD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    print(done.stdout)
    if done.returncode == 0:
        made.write_text(json.dumps(wanted))
    found = re.findall(r"chattn_cuda: CUDA kernels .*", done.stdout)
    print(f"RESULT {found[-1] if found else last_line(done.stdout)}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(build(sys.argv[1] or None, "--any" in sys.argv))
