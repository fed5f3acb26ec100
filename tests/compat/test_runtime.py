"""Modes of the runtime: determinism, threads, processes."""

from __future__ import annotations

import re
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


@feature(
    SECTION,
    "CUDA graphs",
    "yes",
    "shown on the host execution layer, not on a GPU: all launches go to the current stream, "
    "depend on shapes alone, and nothing allocates past torch's allocator or synchronises",
)
def test_launches_can_be_captured() -> None:
    from chattn_cuda import accelerate
    from tests import host_backend
    from tests.cuda_host import build, operators

    host_backend.register()
    if (reason := host_backend.load()) is not None:
        pytest.skip(reason)
    # the current stream is checked by the layer at every launch
    host = operators.load()
    fast, _ = pair()
    accelerate(fast.eval(), host_backend.NAME)
    logs = []
    for x in (images(), images() * torch.nan, torch.zeros_like(images())):
        host.reset()
        with host.options():
            fast(x).sum().backward()
        logs.append(host.report().launches)
    assert logs[0] and logs[0] == logs[1] == logs[2]
    calls = re.compile(r"\bcuda(Malloc|Free|Memcpy|Memset|\w*Synchronize|EventQuery)\w*\s*\(")
    for path in (build.ROOT / "csrc").rglob("*"):
        if path.suffix in (".h", ".cuh", ".cu", ".cpp"):
            assert not calls.search(path.read_text()), path
