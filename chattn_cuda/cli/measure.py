"""Correctness gate and timing, shared by ``demo``, ``bench`` and the pytest-benchmark suite.

The implementations of a row run in turn, round by round, in one process, so that whatever else the
machine does meets all of them alike; what is reported are medians and the ratios of medians.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import torch
from torch import Tensor

from chattn_cuda.cli.cases import COMPILE, EAGER, Problem, Row, fused_backends
from chattn_cuda.reference import accumulation_dtype

__all__ = [
    "FACTOR",
    "Entry",
    "Result",
    "Waiting",
    "compare",
    "error_floor",
    "errors",
    "keep_freed_memory",
    "measure",
    "peak_memory",
    "time_calls",
]

T = TypeVar("T")

FACTOR = 2.0
"""A result may be so many times as far from the exact one as eager PyTorch's, plus a floor."""


def error_floor(dtype: torch.dtype) -> float:
    """What is allowed where eager PyTorch is exact by luck, relative to the largest exact value.

    One rounding to ``dtype`` and 16 units in the last place of the accumulation type.
    """
    return 0.5 * torch.finfo(dtype).eps + 16 * torch.finfo(accumulation_dtype(dtype)).eps


def errors(value: Tensor, exact: Tensor) -> tuple[float, float]:
    """Returns (largest absolute error over the largest exact value, relative L2 error)."""
    if exact.numel() == 0:
        return 0.0, 0.0
    exact = exact.detach().double()
    difference = value.detach().double() - exact
    tiny = torch.finfo(torch.float64).tiny
    return (
        float(difference.abs().max() / exact.abs().max().clamp_min(tiny)),
        float(difference.norm() / exact.norm().clamp_min(tiny)),
    )


def compare(
    names: Sequence[str],
    values: Sequence[Tensor],
    exact: Sequence[Tensor],
    eager: Sequence[Tensor],
    factor: float = FACTOR,
) -> tuple[float, str | None]:
    """Compare results with the exact ones, by ``factor`` times the error that eager PyTorch makes.

    Returns:
        The largest error over all tensors, and what is wrong, if anything is.
    """
    largest, problem = 0.0, None
    for name, v, x, e in zip(names, values, exact, eager, strict=True):
        if v.shape != e.shape or v.dtype != e.dtype:
            return float("inf"), f"{name} is {v.dtype} {tuple(v.shape)}, not {tuple(e.shape)}"
        for error, allowed in zip(errors(v, x), errors(e, x), strict=True):
            limit = factor * allowed + error_floor(e.dtype)
            if not error <= limit and problem is None:  # also where it is NaN
                problem = f"{name} has error {error:.1e}, above {limit:.1e}"
        largest = max(largest, errors(v, x)[0])
    return largest, problem


@dataclass
class Entry:
    """One implementation in a row.

    Attributes:
        samples: Milliseconds of each round; empty where it did not run.
        error: Largest error against float64, relative to the largest exact value of its tensor.
        wrong: What is wrong with its results; such an implementation is not timed.
        unavailable: Why it could not run.
        waited: For what share of the time other processes kept one of its threads off the CPU.
    """

    samples: list[float] = field(default_factory=list)
    error: float | None = None
    wrong: str | None = None
    unavailable: str | None = None
    waited: float = 0.0

    @property
    def ms(self) -> float | None:
        """The median."""
        return median(self.samples) if self.samples else None

    @property
    def noisy(self) -> bool:
        """Whether the machine was too busy for the median to mean much.

        A thread that waits for a core holds up all the others at the end of every parallel loop.
        """
        spread = self.spread()
        return self.waited > 0.1 or (spread is not None and spread[1] > 1.5 * spread[0])

    def spread(self) -> tuple[float, float] | None:
        """The 20 % and 80 % quantiles."""
        if len(self.samples) < 2:
            return None
        parts = quantiles(self.samples, n=5, method="inclusive")
        return parts[0], parts[-1]


@dataclass
class Result:
    """A measured row; ``entries`` in the order of the implementations."""

    row: Row
    entries: dict[str, Entry]

    def ratio(self, baseline: str, implementation: str) -> float | None:
        """How many times as fast as ``baseline`` the implementation is."""
        entry, base = self.entries.get(implementation), self.entries.get(baseline)
        if entry is None or base is None or entry.ms is None or base.ms is None:
            return None
        return base.ms / entry.ms


def measure(
    row: Row,
    implementations: Sequence[str] | None = None,
    *,
    seconds: float = 3.0,
    min_rounds: int = 7,
    max_rounds: int = 300,
) -> Result:
    """Check every implementation of a row against float64, then time them in turn.

    Args:
        row: What to measure.
        implementations: "eager" first; by default eager, torch.compile and every backend with
            kernels that can run on the row's device.
        seconds: Time to spend on the rounds, after compilation and checks.
        min_rounds: At least so many rounds, even if they take longer.
        max_rounds: At most so many.

    Returns:
        The result; wrong or unavailable implementations have no samples.
    """
    if implementations is None:
        implementations = (EAGER, COMPILE, *fused_backends(row.device))
    if row.device == "cpu":
        keep_freed_memory()
    problem = Problem(row, copies=_copies(row))
    torch._dynamo.reset()  # compiled code of earlier rows would count against its limits
    exact, eager = problem.exact(), problem.call(EAGER)()
    entries: dict[str, Entry] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name in implementations:
        entry = entries[name] = Entry()
        call = problem.call(name)
        try:
            values = call()
        except Exception as error:
            if name != COMPILE:
                raise
            # Without a C++ compiler, for one.
            text = str(error).strip() or type(error).__name__
            entry.unavailable = text.splitlines()[0]
            continue
        # What PyTorch's own compiler loses by another order of sums is not for us to judge.
        factor = 4 * FACTOR if name == COMPILE else FACTOR
        entry.error, entry.wrong = compare(problem.names, values, exact, eager, factor)
        if entry.wrong is None:
            calls[name] = call
    del exact, eager
    with Waiting() as waiting:
        samples = time_calls(
            calls,
            row.device,
            seconds=seconds,
            min_rounds=min_rounds,
            max_rounds=max_rounds,
            repeat=_copies(row),
        )
    for name, times in samples.items():
        entries[name].samples = times
        entries[name].waited = waiting.share if row.device == "cpu" else 0.0
    return Result(row, entries)


class Waiting:
    """Finds out for what share of a ``with`` block a thread was ready but had no core.

    Attributes:
        share: Of the thread that waited longest; 0 where the system does not tell.
    """

    share = 0.0

    def __enter__(self) -> Waiting:
        self._start, self._before = time.perf_counter_ns(), self._delays()
        return self

    def __exit__(self, *exception: object) -> None:
        elapsed = time.perf_counter_ns() - self._start
        delays = [d - self._before.get(thread, 0) for thread, d in self._delays().items()]
        self.share = max(delays, default=0) / max(elapsed, 1)

    @staticmethod
    def _delays() -> dict[str, int]:
        """Nanoseconds that each thread of this process has waited, from Linux's scheduler."""
        delays = {}
        tasks = Path("/proc/self/task")
        for thread in os.listdir(tasks) if tasks.exists() else ():
            try:
                delays[thread] = int((tasks / thread / "schedstat").read_text().split()[1])
            except (OSError, IndexError, ValueError):  # it has ended, or there is no such file
                continue
        return delays


@functools.cache
def keep_freed_memory() -> bool:
    """Have the C library keep freed memory, for the rest of the process, as GPU allocators do.

    By default it returns large blocks to the system when they happen to lie at the end of the heap.
    Then the next block costs a page fault per 4 KiB, several times what a pass over a map takes,
    and which of the implementations that run in turn pays for it is a matter of luck.

    Returns:
        Whether that worked: it does with glibc.
    """
    try:
        library = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        return bool(library.mallopt(trim_threshold, 2**31 - 1) and library.mallopt(mmap_max, 0))
    except (OSError, AttributeError, TypeError):  # no such library or function
        return False


def peak_memory(call: Callable[[], T]) -> tuple[int, T]:
    """The most bytes that torch's allocator for CPUs has handed out at once during a call.

    Torch's profiler notes each time that it hands out memory or gets it back, inside of operators
    too. What was there before the call does not count, nor that it is given back: the profiler does
    not know it. It is the same in every run.

    Returns:
        The bytes, and what ``call`` returned.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # nobody asked when its profiler starts
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes, initial=0)), result


def time_calls(
    calls: Mapping[str, Callable[[], object]],
    device: str,
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 300,
    repeat: int = 1,
    hide_launches: bool = True,
) -> dict[str, list[float]]:
    """Milliseconds per call, round by round, the calls in turn and each round in another order.

    On a CPU a sample is one call; its results are freed after the clock has stopped. On a GPU it is
    the device's time for ``repeat`` calls, by CUDA events, divided by ``repeat``; with
    ``hide_launches`` the device is kept waiting until the host has queued them.

    Args:
        calls: What to time; each is called twice beforehand.
        device: "cpu" or "cuda".
        seconds: Time to spend.
        min_rounds: At least so many rounds.
        max_rounds: At most so many.
        repeat: Calls per sample on a GPU.
        hide_launches: See above.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    sleep = {}
    for name, call in calls.items():
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeat if device == "cuda" else 1):
            call()
        sleep[name] = time.perf_counter() - start if hide_launches else 0.0
    end = time.perf_counter() + seconds
    names = list(calls)
    for i in itertools.count():
        if not names or i >= max_rounds or (i >= min_rounds and time.perf_counter() > end):
            return samples
        first = i % len(names)
        for name in names[first:] + names[:first]:
            if device == "cuda":
                samples[name].append(_gpu_sample(calls[name], repeat, sleep[name]))
            else:
                samples[name].append(_cpu_sample(calls[name]))
    return samples


def _cpu_sample(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result
    return elapsed * 1e3


def _gpu_sample(call: Callable[[], object], repeat: int, sleep: float) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    if sleep:
        torch.cuda._sleep(int(min(1.5 * sleep, 0.1) * 2e9))  # cycles of a clock near 2 GHz
    begin.record()
    for _ in range(repeat):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeat


def _copies(row: Row) -> int:
    """Sets of inputs that a GPU goes round, so that its L2 cache never holds the next one."""
    if row.device != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    n, c, h, w = row.shape
    size = n * c * h * w * row.dtype.itemsize
    return max(2, min(32, -(-2 * cache // size) + 1))
