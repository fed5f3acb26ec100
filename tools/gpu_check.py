"""What is wrong and what is slow on a machine with a GPU, in at most six minutes.

    make gpu-check                             or: python tools/gpu_check.py
    python tools/gpu_check.py --rehearse       the same steps on the CPU, with tiny sizes

Builds the extension in place for the GPU that is here, with this Python, and needs no network:
torch with CUDA, nvcc, g++, pytest and timm are enough. First what is timed, one step at a time,
while what comes later is compiled on other cores; then what is checked, side by side, until time
is over. Whole models are gpu_models.py's.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
from pathlib import Path

import gpu_blocks
import gpu_host
import gpu_tails
from gpu_main import ASIDE, Plan, main, step_import
from gpu_runner import Step, last_line, marked
from gpu_summary import Promises

SECONDS = 340  # with what comes before the first step, six minutes
OWN = str(Path(__file__).resolve())


def line_with(pattern: str, output: str) -> str:
    """What a pattern's group matches, else the last line."""
    match = re.search(pattern, output)
    return match[1].strip() if match else last_line(output)


def sanitizer_note(output: str) -> str:
    """What compute-sanitizer found, and in how many calls."""
    if match := re.search(r"Device not supported[^\n]*", output):
        return match[0].strip()
    found = re.findall(r"ERROR SUMMARY: .*", output)
    return f"{found[-1]}; {marked(output)}" if found else last_line(output)


def compute_sanitizer() -> str | None:
    """Where it is installed."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [f"{home}/{sub}" for home in homes if home for sub in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *folders]))


def plan(rehearse: bool) -> list[Step]:
    """What comes after the build, most valuable first."""

    def step(name: str, limit: float, *words: str, **more: object) -> Step:
        flags = ["--rehearse"] if rehearse else []
        command = [sys.executable, OWN, *flags, "--step", *(words or (name,))]
        return Step(name, command, limit, needs=("import",), **more)  # type: ignore[arg-type]

    tails = gpu_tails.rows(rehearse)
    doctor = Step(
        "doctor", [sys.executable, "-m", "chattn_cuda", "doctor"], 40, needs=("import",),
        note_of=functools.partial(line_with, r"\bGPU(?: 0)? +(.*)"), aside=True,
    )  # fmt: skip
    timed = [
        step("host", 75),
        step("kernels", 70, after=("host",)),
        *(step(str(row), 120, "tail", str(i), aside=True, env=ASIDE)
          for i, row in enumerate(tails)),
        step("blocks", 60, after=("kernels", *map(str, tails))),
    ]  # fmt: skip
    names = tuple(s.name for s in timed)
    build = step("host execution, build", 300, "host-build", aside=True, cores=4)
    checked = [
        step("CUDA graph", 60, "graph", after=names),
        step("host execution", 150, "compare", after=(*names, build.name)),
        _memcheck(step("memcheck", 120, "sanitized", after=names), rehearse),
        step("tests", 300, after=names),
    ]
    return [doctor, *timed, build, *checked]


def _memcheck(step: Step, rehearse: bool) -> Step:
    """The step under compute-sanitizer; in a rehearsal without it."""
    if rehearse:
        return step
    if tool := compute_sanitizer():
        step.command = [tool, "--tool=memcheck", "--kernel-regex", "kns=chattn",
                        "--error-exitcode=9", *step.command]  # fmt: skip
        step.note_of = sanitizer_note
    else:
        step.command, step.note = [], "compute-sanitizer is not installed"
    return step


def promises(rehearse: bool) -> Promises:
    """The variants of each row."""
    blocks = [gpu_blocks.name_of(*row) for row in gpu_blocks.rows(rehearse)]
    return {
        **{(gpu_host.TABLE, row): gpu_host.variants(rehearse) for row in gpu_host.rows()},
        **{(gpu_tails.TABLE, str(row)): gpu_tails.VARIANTS for row in gpu_tails.rows(rehearse)},
        **{(gpu_blocks.TABLE, row): gpu_blocks.variants(rehearse) for row in blocks},
    }


def run_step(words: list[str], rehearse: bool) -> int:
    """One step, in the process that was started for it."""
    if words == ["import"]:
        return step_import()
    if words[0] == "tail":
        return gpu_tails.step(gpu_tails.rows(rehearse)[int(words[1])])
    if words[0] in ("host", "kernels", "blocks", "tests"):
        return __import__(f"gpu_{words[0]}").step(rehearse)
    from gpu_steps import STEPS

    return STEPS[words[0]](rehearse)


if __name__ == "__main__":
    sys.exit(main(Plan("gpu-check", SECONDS, plan, promises, run_step)))
