"""What gpu_check.py and gpu_models.py have in common: the command line, the build, the files.

Three files in $OUT (default: bench/results): NAME.txt with the first page and the tables, which are
also printed, last; NAME.jsonl with every record; NAME.log with the output of every step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gpu_results
from gpu_runner import BUILD, ROOT, SHARED, Runner, Step, build_step, last_line
from gpu_summary import Promises, left_out, page, slower, wrong
from gpu_tables import tables

BUILT = "built"  # in the folder that steps share
# Of processes that compile side by side.
ASIDE = {"TORCHINDUCTOR_COMPILE_THREADS": "2", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
        name: Of the files and of make's target.
        seconds: All that it may take.
        steps: Given whether it is a rehearsal, the steps after the build.
        promises: Likewise, the variants of each row that is to be measured.
        run_step: One of the steps, in a process of its own; returns its exit code.
    """

    name: str
    seconds: float
    steps: Callable[[bool], list[Step]]
    promises: Callable[[bool], Promises]
    run_step: Callable[[list[str], bool], int]


def main(plan: Plan) -> int:
    """Run all steps, or one; returns the exit code."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        sys.path.insert(0, str(ROOT))
        try:
            return plan.run_step(arguments.step, arguments.rehearse)
        except gpu_results.OutOfTime:
            print("RESULT no time left")
            return 124
    arch = None if arguments.rehearse else architecture()
    if arch is None and not arguments.rehearse:
        print("torch finds no GPU here; --rehearse runs the steps on the CPU", file=sys.stderr)
        return 2
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        caches = Path(scratch) if arguments.rehearse else BUILD
        return run(plan, folder, arch, arguments.rehearse, caches)


def run(plan: Plan, folder: Path, arch: str | None, rehearse: bool, caches: Path) -> int:
    """All steps; returns the exit code."""
    files = {end: folder / f"{plan.name}.{end}" for end in ("txt", "jsonl", "log")}
    for path in files.values():
        path.unlink(missing_ok=True)
    own = [sys.executable, str(Path(sys.modules["__main__"].__file__ or "").resolve())]
    flags = ["--rehearse"] if rehearse else []
    first = Step("import", [*own, *flags, "--step", "import"], 60, needs=("build",), cores=0)
    steps = [build_step(arch, rehearse), first, *plan.steps(rehearse)]
    # Small and busy machines rehearse.
    seconds = plan.seconds * (3 if rehearse else 1)
    variables = environment(files["jsonl"], arch, caches)

    def save() -> tuple[list[str], list[str]]:
        records = gpu_results.read(files["jsonl"])
        text = page(plan.name, runner.elapsed(), steps, records, plan.promises(rehearse))
        more = tables(records)
        everything = ["", "everything that the first page shortens:"]
        everything += [*wrong(steps, records), *slower(records)]
        everything += left_out(steps, records, plan.promises(rehearse))
        files["txt"].write_text("\n".join([*text, *more, *everything]) + "\n")
        return text, more

    runner = Runner(steps, files["log"], variables, seconds, lambda: save())
    runner.run()
    text, more = save()
    print("\n".join([*more, "", *text]), flush=True)
    return 1 if wrong(steps, gpu_results.read(files["jsonl"])) else 0


def environment(records: Path, arch: str | None, caches: Path) -> dict[str, str]:
    """Variables of every step."""
    chosen = {k: v for k, v in os.environ.items() if k == "GPU_CHECK_COMPILER"}
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
        "PYTHONUNBUFFERED": "1",
        "CHATTN_BUILD_CUDA": "1" if arch else "0",
        **({"TORCH_CUDA_ARCH_LIST": arch} if arch else {}),
        gpu_results.FILE: str(records),
        # A graph with our functions in it is found again, too.
        "TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        # Inductor takes minutes for what nobody wants to measure.
        **({} if arch else {"GPU_CHECK_COMPILER": "aot_eager", **chosen}),
    }


def architecture() -> str | None:
    """The GPU's compute capability, such as "9.0"; None without a GPU."""
    code = (
        "import torch; print('%d.%d' % torch.cuda.get_device_capability()"
        " if torch.cuda.is_available() else '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return last_line(done.stdout) or None


def step_import() -> int:
    """Imports the package, says what this machine is, and lets those go on who wait for that."""
    from variants import device

    from chattn_cuda.cli.environment import environment as conditions

    versions = [conditions(device()).line()]
    try:
        import triton

        versions.append(f"Triton {triton.__version__}")
    except ImportError:
        versions.append("no Triton")
    versions.append(time.strftime("%Y-%m-%d"))
    text = ", ".join(versions)
    gpu_results.emit("conditions", text=text)
    Path(os.environ[SHARED], BUILT).touch()
    print(f"RESULT {text}")
    return 0
