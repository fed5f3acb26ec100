"""Tails by the statistics of several processes, on gloo, against the joined batch in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

import chattn_cuda  # noqa: E402
from chattn_cuda import backends  # noqa: E402
from chattn_cuda.modules import deferred  # noqa: E402
from chattn_cuda.ops.tail import Norm  # noqa: E402
from tests import together  # noqa: E402
from tests.compare import assert_close  # noqa: E402

FUSED = backends.select("auto", "cpu") != "reference"
pytestmark = [
    pytest.mark.skipif(not FUSED, reason="no fused backend for the CPU"),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="no gloo"),
]

ROOT = Path(__file__).parents[1]
PROCESSES = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each process found, all of them started once."""
    folder = tmp_path_factory.mktemp("together")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "tests.together"]
    outs = [folder / f"{rank}.pt" for rank in range(PROCESSES)]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(PROCESSES), str(folder / "store"), str(out)],
            env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    try:
        said = [p.communicate(timeout=900)[1] for p in started]
    finally:
        for p in started:
            p.kill()
    assert not any(p.returncode for p in started), "\n".join(s[-2000:] for s in said)
    return [torch.load(out) for out in outs]


def joined(parts: list[dict[str, Any]], name: str) -> dict[str, Tensor]:
    """Of all samples: maps one behind the other, gradients of weights summed."""
    values = [[p["y"], *p["grads"]] for p in parts]
    result = {}
    names = ("y", "dx", "dresidual", "dweight", "dbias", *(f"dgate{i}" for i in range(4)))
    for key, *ts in zip(names, *values, strict=False):
        if ts[0] is not None:
            result[key] = torch.cat(ts) if key in names[:3] else torch.stack(ts).sum(0)
    for p in parts[1:]:  # all know the same
        for one, other in zip(p["running"], parts[0]["running"], strict=True):
            assert torch.equal(one, other), name
    running = parts[0]["running"]
    return result | {"running_mean": running[0], "running_var": running[1]}


def in_one(name: str, samples: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same of the whole batch, by the formulas."""
    case = together.CASES[name]
    tensors, dy, factors = case.tensors(samples, dtype)
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    tail = case.tail(Norm(None, None, together.EPS), factors)
    y = tail.formula(None, None, *leaves)[0]
    y.backward(dy)
    c = together.CHANNELS
    running = [torch.zeros(c, dtype=dtype), torch.ones(c, dtype=dtype)]
    nn.functional.batch_norm(leaves[0], *running, training=True, momentum=together.MOMENTUM)
    grads = [None if t is None else t.grad for t in leaves]
    return joined([{"y": y.detach(), "grads": grads, "running": running}], name)


def check(parts: list[dict[str, Any]], name: str, samples: int, dtype: torch.dtype) -> None:
    """Compare what processes found with the joined batch."""
    exact, eager = in_one(name, samples, torch.float64), in_one(name, samples, dtype)
    actual = joined(parts, name)
    assert actual.keys() == exact.keys()
    for key, value in actual.items():
        assert_close(key, value, exact[key], eager[key], dtype=dtype)
    assert all(int(p["running"][2]) == 5 for p in parts)


@pytest.mark.parametrize("dtype", together.DTYPES)
@pytest.mark.parametrize("layout", together.LAYOUTS)
@pytest.mark.parametrize("split", together.SPLITS)
@pytest.mark.parametrize("name", together.CASES)
def test_as_the_joined_batch(
    name: str, split: str, layout: str, dtype: torch.dtype, found: list[Any]
) -> None:
    """Values, gradients and running statistics, of any number of samples in each process."""
    sizes = together.SPLITS[split]
    parts = [f[f"{split}-{layout}"][name, dtype] for f in found[: len(sizes)]]
    for p, size in zip(parts, sizes, strict=True):
        assert len(p["y"]) == size
        assert size == 0 or p["y"].is_contiguous(memory_format=together.LAYOUTS[layout])
    check(parts, name, sum(sizes), dtype)


@pytest.mark.parametrize("bug", together.BUGS)
def test_planted_bugs_are_noticed(bug: str, found: list[Any]) -> None:
    """In every case."""
    for name in together.CASES:
        with pytest.raises(AssertionError):
            check([f[bug][name, torch.float64] for f in found[:2]], name, 5, torch.float64)


# ---- blocks
@pytest.mark.parametrize(("name", "way"), [r for r in together.RUNS if "check" not in r[1]])
def test_blocks(name: str, way: str, found: list[Any]) -> None:
    """As with the joined batch, also where one process runs the layers."""
    parts = [f["blocks"][name, way] for f in found[:2]]
    module = together.block(name)
    sizes = together.SPLITS["two"]
    expected = together.train(module, together.images(sum(sizes)))
    maps = [torch.cat(ts) for ts in zip(*(p["maps"] for p in parts), strict=True)]
    torch.testing.assert_close(maps, expected["maps"], rtol=1e-7, atol=1e-7)
    grads = {k: sum(p["grads"][k] for p in parts) for k in expected["grads"]}
    torch.testing.assert_close(grads, expected["grads"], rtol=1e-7, atol=1e-7)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    for rank, p in enumerate(parts):
        torch.testing.assert_close(p["buffers"], expected["buffers"], rtol=1e-7, atol=1e-7)
        # Two steps of each norm.
        assert p["calls"] == (0 if rank in together.WAYS[way] else 2 * norms)


def test_checkpoints(found: list[Any]) -> None:
    """A recomputation exchanges and updates as the layers' does."""
    for f in found[:2]:
        actual, expected = (
            {k: v for k, v in f["blocks"]["bottleneck-se", way].items() if k != "calls"}
            for way in ("checkpoint", "checkpoint-all")
        )
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


def test_errors(found: list[Any]) -> None:
    """Maps on a CPU have PyTorch's; second derivatives one of their own, first ones none."""
    for f in found[:2]:
        of_cpu, gradient, of_second = f["errors"]
        assert "expected input tensor to be on GPU" in of_cpu
        assert gradient == "gradient: torch.Size([2, 16, 6, 5])"
        assert "over several processes" in of_second and "first derivatives" in of_second


def test_alone_it_is_a_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without other processes: the ordinary tail, in both modes, whichever came first."""
    calls: list[Any] = []

    def apply(*args: Any) -> Any:
        calls.append(args[1].norm.together)
        return apply_tail(*args)

    apply_tail = deferred.apply_tail
    monkeypatch.setattr(deferred, "apply_tail", apply)
    monkeypatch.setattr(deferred, "SMALLEST", {})
    monkeypatch.setattr(deferred, "_layers_are_faster", lambda *_: False)
    x = together.images(3)
    for convert_first in (False, True):
        module = together.block("bottleneck-se")
        fused = together.block("bottleneck-se")
        if convert_first:
            fused = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
        chattn_cuda.accelerate(fused, fuse="tail")
        fused = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
        calls.clear()
        for mode in (True, False):
            found, expected = (together.train(m.train(mode), x) for m in (fused, module))
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
        assert calls == [None] * 16


def test_small_maps_of_such_norms_go_to_the_layers() -> None:
    """By their own width, of blocks that have no other norms."""
    fused = nn.SyncBatchNorm.convert_sync_batchnorm(together.block("bottleneck"))
    chattn_cuda.accelerate(fused, fuse="tail")
    small, large = torch.randn(1, 16, 6, 5), torch.randn(8, 16, 128, 128)
    assert "so small" in str(chattn_cuda.explain(fused, small))
    assert chattn_cuda.explain(fused, large).path == "fused"
