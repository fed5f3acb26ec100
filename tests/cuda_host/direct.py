"""Squeeze-and-excitation in float32 without torch, in a process of its own.

For libraries that may crash, hang or report to stderr: changed copies of csrc/, sanitizers.

    library = build(csrc)
    with Process(library) as process:
        outcome = process.run(PROBLEMS[0], order="random", races=True)
        outcome.error, outcome.arrays["y"], outcome.forward.buffers["x"].load_bytes

The process is this module run as a program. It imports no torch, which would take longer than the
kernels do.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import math
import mmap
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tests.cuda_host import build as builder
from tests.cuda_host.control import HostCuda, Report

if TYPE_CHECKING:
    from torch import Tensor

RELU, SILU, SIGMOID = 1, 4, 10
ALIGNMENT = 256
SOURCE = builder.HERE / "direct" / "se.cpp"
TIMEOUT = 120
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Problem:
    """One size, forward and backward."""

    name: str
    n: int
    c: int
    h: int
    w: int
    rd: int
    add_maxpool: bool = False
    channels_last: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The arrays of a call, inputs first."""
        n, c, rd = self.n, self.c, self.rd
        planes, size = (n, c), (n, c, self.h, self.w)
        inputs = {"x": size, "dy": size, "w1": (rd, c), "b1": (rd,), "w2": (c, rd), "b2": (c,)}
        forward = {"y": size, "pooled": planes, "peak": planes, "hidden": (n, rd), "gate": planes}
        backward = {"dx": size, "dw1": (rd, c), "db1": (rd,), "dw2": (c, rd), "db2": (c,)}
        return {**inputs, **forward, **backward}

    @property
    def sizes(self) -> list[int]:
        """What direct_se() takes."""
        shape = [self.n, self.c, self.h * self.w, self.rd]
        return [*shape, SILU, SIGMOID, int(self.add_maxpool), int(self.channels_last)]

    @property
    def map_bytes(self) -> int:
        return 4 * self.n * self.c * self.h * self.w


#: small, and together on every path through the launchers: test_cuda_host_mutations.py checks it
PROBLEMS = (
    Problem("tiles", 2, 33, 7, 5, 40),
    Problem("tiles_max", 3, 64, 9, 9, 8, add_maxpool=True),
    Problem("planes_by_block", 1, 6, 40, 40, 3),
    Problem("planes_in_parts", 1, 2, 95, 97, 2, add_maxpool=True),
    Problem("planes_by_warp", 1, 11, 23, 23, 4),
    Problem("rows", 2, 36, 9, 9, 5, add_maxpool=True, channels_last=True),
    Problem("rows_by_element", 2, 33, 9, 9, 7, channels_last=True),
    Problem("wide", 2, 520, 3, 3, 70),
    Problem("batch", 70, 20, 2, 2, 6),
    Problem("batch_wide", 66, 260, 1, 2, 34),
    Problem("batch_rows", 33, 12, 3, 1, 6, channels_last=True),
)


@dataclass(frozen=True)
class Plan:
    """What the planner chose."""

    kind: str  # tiles, planes, rows
    vec: int
    warps_per_plane: int
    reduce_splits: int
    contract_splits: int
    sample_tiles: int
    hidden_tiles: int
    contract_wide: int
    apply_samples: int
    apply_parts: int


@dataclass(frozen=True)
class Outcome:
    """One run: an error, or the results and what moved."""

    error: str | None
    arrays: dict[str, Tensor]
    forward: Report | None
    backward: Report | None


def build(csrc: Path, variant: str = "plain") -> Path:
    """The library, from csrc/ or a changed copy."""
    sources = [csrc / "gates" / "se_cuda_f32.cu", SOURCE]
    return builder.build_library("direct_se", sources, variant=variant, csrc=csrc)


def offsets(problem: Problem) -> tuple[dict[str, int], int]:
    """(byte offset of each array, bytes in all); there is a gap behind each array."""
    at, end = {}, 0
    for name, shape in problem.shapes.items():
        at[name] = end
        end += (4 * math.prod(shape) // ALIGNMENT + 2) * ALIGNMENT
    return at, end


class Process:
    """A process that has loaded a library."""

    def __init__(self, library: Path, variant: str = "plain") -> None:
        command, env = builder.sanitized(variant, [sys.executable, "-m", __name__, str(library)])
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env=env,
            cwd=builder.ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self._stderr.close()

    def close(self) -> tuple[int, str]:
        """End it; (exit status, stderr)."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        code = self._process.wait(TIMEOUT)
        self._stderr.seek(0)
        return code, self._stderr.read()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer, or None if the process died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        watchdog = threading.Timer(TIMEOUT, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            watchdog.cancel()
        return json.loads(answer) if answer else None

    def plan(self, problem: Problem) -> Plan:
        """What the planner chooses."""
        answer = self._ask({"plan": problem.sizes})
        assert answer is not None
        kind, *rest = answer["plan"]
        return Plan(("tiles", "planes", "rows")[kind], *rest)

    def run(
        self,
        problem: Problem,
        inputs: dict[str, Tensor],
        *,
        to: tuple[str, ...] = DIRECTIONS,
        **options: Any,
    ) -> Outcome:
        """Forward and backward, with the runtime's options.

        Args:
            problem: The size.
            inputs: float32, as `problem.shapes` says; maps are dense in the problem's layout.
            to: The directions that the options apply to.
            options: As in hostcuda.h.
        """
        import torch

        at, size = offsets(problem)
        maps = {name for name, shape in problem.shapes.items() if len(shape) == 4}
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(size)
            memory = mmap.mmap(file.fileno(), size)

            def array(name: str) -> Tensor:
                shape = problem.shapes[name]
                flat = torch.frombuffer(
                    memory, dtype=torch.float32, count=math.prod(shape), offset=at[name]
                )
                if name in maps and problem.channels_last:
                    n, c, h, w = shape
                    return flat.view(n, h, w, c).permute(0, 3, 1, 2)
                return flat.view(shape)

            for name, value in inputs.items():
                array(name).copy_(value)
            request = {"problem": dataclasses.asdict(problem), "file": file.name}
            answer = self._ask({**request, "options": {name: options for name in to}})
            arrays = {n: array(n).clone() for n in problem.shapes if n not in inputs}
            # torch.frombuffer keeps `memory` alive; it goes with the last view.
        if answer is None:
            code, text = self.close()
            return Outcome(f"the process ended with status {code}: {text}", {}, None, None)
        if answer["error"]:
            return Outcome(answer["error"], {}, None, None)
        if not problem.add_maxpool:
            del arrays["peak"]
        forward, backward = (Report.parse(answer[name]) for name in DIRECTIONS)
        return Outcome(None, arrays, forward, backward)


# ---- the program --------------------------------------------------------------------------------
def _serve(library: str) -> None:
    host = HostCuda(library)
    error = ctypes.create_string_buffer(2048)
    for line in sys.stdin:
        request = json.loads(line)
        if "plan" in request:
            sizes = (ctypes.c_int * len(request["plan"]))(*request["plan"])
            plan = (ctypes.c_int * len(dataclasses.fields(Plan)))()
            host.library.direct_se_plan(sizes, plan)
            print(json.dumps({"plan": list(plan)}), flush=True)
            continue
        problem = Problem(**request["problem"])
        at, size = offsets(problem)
        answer: dict[str, Any] = {"error": None}
        with open(request["file"], "r+b") as file:
            memory = (ctypes.c_char * size).from_buffer(mmap.mmap(file.fileno(), size))
            base = ctypes.addressof(memory)
            arrays = (ctypes.c_void_p * len(at))(*(base + offset for offset in at.values()))
            sizes = (ctypes.c_int * len(problem.sizes))(*problem.sizes)
            for backward, name in enumerate(DIRECTIONS):
                host.reset()
                with host.options(**request["options"].get(name, {})):
                    failed = host.library.direct_se(
                        backward, sizes, arrays, error, ctypes.c_size_t(len(error))
                    )
                if failed:
                    answer["error"] = error.value.decode()
                    break
                answer[name] = host.report_text()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
