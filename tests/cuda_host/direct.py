"""A block's kernels in float32 without torch, in a process of its own.

For libraries that may crash, hang or report to stderr: changed copies of csrc/, sanitizers.

    library = build("se", csrc)
    with Process(library) as process:
        outcome = process.run(PROBLEMS["se"][0], inputs, order="random", races=True)
        outcome.error, outcome.arrays["y"], outcome.reports["forward"].buffers["x"].load_bytes

The process is this module run as a program. It imports no torch, which would take longer than the
kernels do.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
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
from tests.cuda_host.problems import Problem

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 256
TIMEOUT = 120
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Outcome:
    """One run: an error, or the results and, by direction, what moved."""

    error: str | None
    arrays: dict[str, Tensor]
    reports: dict[str, Report]


def described(problem: Problem) -> dict[str, Any]:
    """A call but for its arrays' places, as direct.cpp takes it."""
    sizes = {"n": problem.n, "c": problem.c, "hw": problem.h * problem.w}
    options = {**sizes, "channels_last": problem.channels_last, **problem.options}
    text = " ".join(f"{k}={int(v) if v is True or v is False else v}" for k, v in options.items())
    return {"calls": problem.operators, "options_of_call": text, "names": " ".join(problem.shapes)}


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

    def plan(self, problem: Problem) -> dict[str, dict[str, int]]:
        """By operator: what the planner chooses, by the names in plan.h."""
        answer = self._ask({**described(problem), "count": len(problem.shapes)})
        assert answer is not None
        return answer

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
            inputs: float32, as `problem.inputs` says; maps are dense in the problem's layout.
            to: The directions that the options apply to.
            options: As in hostcuda.h.
        """
        import torch

        at, size = offsets(problem)
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(size)
            memory = mmap.mmap(file.fileno(), size)

            def array(name: str) -> Tensor:
                shape = problem.shapes[name]
                flat = torch.frombuffer(
                    memory, dtype=torch.float32, count=math.prod(shape), offset=at[name]
                )
                if len(shape) == 4 and problem.channels_last:
                    n, c, h, w = shape
                    return flat.view(n, h, w, c).permute(0, 3, 1, 2)
                return flat.view(shape)

            for name, value in inputs.items():
                array(name).copy_(value)
            request = {**described(problem), "file": file.name}
            request |= {"offsets": list(at.values()), "bytes": size}
            given = {n: {"sm": problem.sm, **(options if n in to else {})} for n in DIRECTIONS}
            answer = self._ask({**request, "options": given})
            arrays = {n: array(n).clone() for n in problem.outputs}
            # torch.frombuffer keeps `memory` alive; it goes with the last view.
        if answer is None:
            code, text = self.close()
            return Outcome(f"the process ended with status {code}: {text}", {}, {})
        if answer["error"]:
            return Outcome(answer["error"], {}, {})
        return Outcome(None, arrays, {name: Report.parse(answer[name]) for name in DIRECTIONS})


# ---- the program --------------------------------------------------------------------------------
def _serve(library: str) -> None:
    host = HostCuda(library)
    text = ctypes.create_string_buffer(2048)

    def call(function: str, operator: str, request: dict[str, Any], addresses: list[int]) -> int:
        words = (word.encode() for word in (operator, request["options_of_call"], request["names"]))
        arrays = (ctypes.c_void_p * len(addresses))(*addresses)
        called = getattr(host.library, function)
        return int(called(*words, arrays, text, ctypes.c_size_t(len(text))))

    for line in sys.stdin:
        request = json.loads(line)
        if "file" not in request:  # the plan; which arrays there are is part of it
            addresses = [ctypes.addressof(text)] * request["count"]
            plans = {}
            for operator in itertools.chain(*request["calls"]):
                call("direct_plan", operator, request, addresses)
                fields = (field.split("=") for field in text.value.decode().split())
                plans[operator] = {name: int(value) for name, value in fields}
            print(json.dumps(plans), flush=True)
            continue
        size, at = request["bytes"], request["offsets"]
        answer: dict[str, Any] = {"error": None}
        with open(request["file"], "r+b") as file:
            memory = (ctypes.c_char * size).from_buffer(mmap.mmap(file.fileno(), size))
            base = ctypes.addressof(memory)
            addresses = [base + offset for offset in at]
            for name, operators in zip(DIRECTIONS, request["calls"], strict=True):
                host.reset()
                with host.options(**request["options"][name]):
                    failed = any(call("direct_run", o, request, addresses) for o in operators)
                if failed:
                    answer["error"] = text.value.decode()
                    break
                answer[name] = host.report_text()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
