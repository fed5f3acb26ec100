"""Peak memory: the walker over the allocator's events, and tools/model_memory.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chattn_cuda import _native
from chattn_cuda.cli.measure import peak_memory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_models  # noqa: E402
import gpu_results  # noqa: E402
import model_memory  # noqa: E402

KIB = 1024


def block(kib: int) -> Tensor:
    return torch.empty(kib * KIB, dtype=torch.uint8)


def test_a_known_pattern_of_allocations() -> None:
    old = [block(64)]

    def call() -> Tensor:
        a, b = block(100), block(50)
        del a  # 150 so far
        old.clear()  # was there before: it does not count that it goes
        c = block(200)  # 50 + 200
        kept = block(10)
        del b, c
        d = block(20)
        del d
        return kept

    most, kept = peak_memory(call)
    assert most == (50 + 200 + 10) * KIB
    assert kept.numel() == 10 * KIB


def test_what_is_only_freed_is_no_peak() -> None:
    old = [block(8)]
    assert peak_memory(old.clear) == (0, None)


def test_a_backward_is_seen() -> None:
    x = block(4 * 256).view(torch.float32).requires_grad_()  # 256 KiB of numbers, 1 MiB

    def step() -> None:
        (x * x * x).sum().backward()  # two products wait, and gradients come
        x.grad = None

    with torch.no_grad():
        alone, _ = peak_memory(lambda: x * x)
    most, _ = peak_memory(step)
    assert alone == x.nbytes
    assert most >= 3 * x.nbytes


@pytest.mark.skipif(_native.why_not_cpu() is not None, reason="needs the CPU kernels")
def test_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv(gpu_results.FILE, "")  # so that it is restored
    options = {"layers": (1, 1, 1, 1), "block_args": {"attn_layer": "se"}}
    plan = bench_models.Plan(side=96, options=tuple(options.items()), backend="cpu")
    path = model_memory.run(("resnet18",), plan, tmp_path)
    ((unit, times),) = gpu_results.rows(gpu_results.read(path)).values()
    assert unit == "GiB" and list(times) == ["eager", 'fuse="block"', 'fuse="tail"']
    eager, _, tails = (t.median for t in times.values())
    assert tails < eager  # most of it are weights
    table = model_memory.markdown(gpu_results.read(path))
    assert "by `python tools/model_memory.py --models resnet18 --backend cpu`" in table
    assert f"| resnet18 | {1024 * eager:.0f} |" in table and "**\u2212" in table
    again = model_memory.measure(bench_models.Row("resnet18", True, 8, "channels_last"), plan)
    assert again == times  # no clock is asked


def test_the_page_has_the_published_table() -> None:
    published = gpu_results.read(ROOT / "bench" / "published" / model_memory.FILE)
    page = model_memory.PAGE.read_text()
    begin, end = bench_models.marks(model_memory.SECTION)
    shown = page.partition(begin)[2].partition(end)[0]
    assert shown == f"\n{model_memory.markdown(published)}", "run: tools/model_memory.py --write"
