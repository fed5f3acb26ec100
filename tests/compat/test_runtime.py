"""Modes of the runtime: determinism, threads, processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

from tests.compat.features import feature  # noqa: E402
from tests.compat.models import assert_same, images, pair, step  # noqa: E402

SECTION = "At run time"
ROOT = Path(__file__).parents[2]


@feature(
    SECTION,
    "`torch.use_deterministic_algorithms(True)`",
    "yes",
    "there are no float atomics; the same bits in every run",
)
def test_deterministic() -> None:
    before = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, again = (step(pair()[0], images()) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(True, warn_only=before)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name


@feature(SECTION, "`torch.no_grad`, `torch.inference_mode`", "yes", "nothing is kept")
def test_inference_modes() -> None:
    fast, plain = pair()
    expected = plain.eval()(images()).detach()
    fast.eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = fast(images())
        assert not y.requires_grad and y.grad_fn is None
        assert_same(y.clone(), expected)


@feature(SECTION, "several Python threads at once", "yes", "forward and backward; no shared state")
def test_threads() -> None:
    fast, plain = pair()
    fast.eval()
    plain.eval()
    sizes = [5 + i for i in range(6)]
    expected = [plain(images(2, size)).detach() for size in sizes]
    results: dict[int, Tensor] = {}
    errors: list[BaseException] = []
    start = threading.Barrier(len(sizes))

    def work(size: int) -> None:
        try:
            start.wait()
            for _ in range(5):
                x = images(2, size).requires_grad_()
                y = fast(x)
                torch.autograd.grad(y.sum(), x)
            results[size] = y.detach()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert_same([results[s] for s in sizes][0], expected[0])
    for size, y in zip(sizes, expected, strict=True):
        assert_same(results[size], y)


_FORK = """
import os, sys, torch
from tests.compat.models import images, pair
child = os.fork()
if child == 0:  # the parent has run nothing yet: its threads are not there to be missed
    fast, plain = pair()
    y, expected = fast.eval()(images()), plain.eval()(images())
    same = torch.allclose(y, expected, rtol=1e-4, atol=1e-5)
    os._exit(0 if same else 3)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@feature(
    SECTION,
    "`fork` after import (DataLoader workers)",
    "yes",
    "as for PyTorch, not after its thread pool has run",
)
def test_fork() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
