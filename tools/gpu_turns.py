"""Processes that get ready side by side and measure in turn: networks in several variants.

torch.compile takes minutes for a whole network and one core at a time, so that every row of a table
is a process of its own: it compiles without running anything, then waits until the GPU is its own,
and measures its variants in turn, round by round, in this one process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_results import OutOfTime, need
from gpu_runner import CORES, READY, TURN, other_cores, quiet_cores
from variants import Subject, device, measure


# ---- turns --------------------------------------------------------------------------------------
def _move_to(wanted: set[int]) -> None:
    """All threads of this process, also autograd's."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(int(thread), wanted)


@contextlib.contextmanager
def turn(seconds: float) -> Iterator[None]:
    """Wait until nobody else measures, and take the quiet cores.

    Raises:
        OutOfTime: It would not be this process's turn while so many seconds are left.
    """
    lock = os.environ.get(TURN)
    if lock is None:
        yield
        return
    with Path(lock).open("w") as file:
        while True:
            need(seconds)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
        everywhere = {int(core) for core in os.environ[CORES].split(",")}
        _move_to(quiet_cores(everywhere))
        try:
            yield
        finally:
            _move_to(other_cores(everywhere))


def ready() -> None:
    """Tell the runner that this process waits for its turn from now on."""
    if path := os.environ.get(READY):
        Path(path).touch()


def measure_in_turn(subject: Subject, variants: dict[str, Any], seconds: float) -> bool:
    """The same once it is this process's turn; returns whether there was time for it."""
    try:
        # A first call may try many configurations of many kernels.
        with turn(4 + len(variants) + seconds):
            measure(subject, variants, seconds)
    except OutOfTime:
        print(f"{subject.row}: no time left for {', '.join(variants)}", flush=True)
        return False
    finally:
        if device() == "cuda":
            torch.cuda.empty_cache()
    return True
