"""Training at scale: checkpointing, several processes, optimizers, counters."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.flop_counter import FlopCounterMode

timm = pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

from chattn_cuda import SqueezeExcite, accelerate, explain  # noqa: E402
from tests.compat.features import feature  # noqa: E402
from tests.compat.models import assert_same, images, pair, step  # noqa: E402

SECTION = "Training"
ROOT = Path(__file__).parents[2]


@feature(SECTION, "activation checkpointing", "yes", "reentrant or not, `checkpoint_sequential`")
def test_checkpointing() -> None:
    fast, plain = pair()
    expected = step(plain.eval(), images())
    fast.eval()

    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool, parts: int) -> None:
            super().__init__()
            self.net, self.reentrant, self.parts = fast, reentrant, parts

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            u = self.net.stem(x)
            if self.parts:
                u = checkpoint_sequential(self.net.blocks, self.parts, u, use_reentrant=False)
            else:
                u = checkpoint(self.net.blocks, u, use_reentrant=self.reentrant)
            return self.net.head(u.mean((2, 3)))

    for reentrant, parts in ((False, 0), (True, 0), (False, 3)):
        actual = step(Checkpointed(reentrant, parts), images())
        assert_same({k.removeprefix("net."): v for k, v in actual.items()}, expected)


def distributed(mode: str, tmp_path: Path) -> dict[str, Any]:
    """What two processes on gloo, started by torchrun, make of the model."""
    out = tmp_path / "out.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.compat.distributed", mode, str(out)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out)


def single() -> dict[str, Any]:
    """The same in one process, on both halves of the batch at once."""
    _, plain = pair()
    plain.eval()  # statistics of half a batch differ
    y = plain(images(4))
    y.sin().mean().backward()
    return {k: p.grad for k, p in plain.named_parameters()}


@feature(SECTION, "`DistributedDataParallel`", "yes", "every parameter gets its gradient")
def test_ddp(tmp_path: Path) -> None:
    assert_same(distributed("ddp", tmp_path), single())


@feature(SECTION, "FSDP1 (`FullyShardedDataParallel`)", "yes", "accelerate before sharding")
def test_fsdp1(tmp_path: Path) -> None:
    assert_same(distributed("fsdp1", tmp_path), single())


@feature(SECTION, "FSDP2 (`fully_shard`)", "yes", "accelerate before sharding")
def test_fsdp2(tmp_path: Path) -> None:
    assert_same(distributed("fsdp2", tmp_path), single())


@feature(SECTION, "pipelining (`PipelineStage`)", "yes", "the cut is between blocks")
def test_pipelining(tmp_path: Path) -> None:
    assert_same(distributed("pipeline", tmp_path), single())


@feature(
    SECTION,
    "tensor parallel (`parallelize_module`)",
    "plain",
    "a block whose layers are split calls them; others stay fused",
)
def test_tensor_parallel(tmp_path: Path) -> None:
    assert_same(distributed("tensor_parallel", tmp_path), single())


@feature(
    SECTION,
    "`SyncBatchNorm.convert_sync_batchnorm`",
    "yes",
    "it finds a batch norm in the gate, which is folded in eval mode and called in train mode; "
    "fused tails exchange what the layer exchanges (test_sync_batch_norm.py)",
)
def test_sync_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(timm.layers.SEModule(16, norm_layer=nn.BatchNorm2d)).eval()
    x = torch.randn(2, 16, 5, 5)
    plain = copy.deepcopy(model)
    accelerate(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[0].bn) is nn.SyncBatchNorm
    assert explain(model[0], x).path == explain(SqueezeExcite(16), x).path
    assert_same(model(x).detach(), plain(x).detach())
    assert_same(model.train()(x).detach(), plain.train()(x).detach())
    assert explain(model[0], x).path == "eager"


@feature(
    SECTION, "weight decay groups", "yes", "the layers stay `nn.Conv2d`, `nn.BatchNorm2d`, ..."
)
def test_weight_decay_groups() -> None:
    from timm.optim import param_groups_weight_decay

    names = []
    for model in pair():
        known = {id(p): n for n, p in model.named_parameters()}
        groups = param_groups_weight_decay(model, 0.05)
        names.append([sorted(known[id(p)] for p in g["params"]) for g in groups])
    assert names[0] == names[1] and all(names[0])


@feature(
    SECTION,
    "`FlopCounterMode`",
    "yes",
    "the operators count what the layers count that they stand for; of an SE block with one frozen "
    "layer the gradients of both",
)
def test_flop_counter() -> None:
    counts = []
    for model in pair():
        with FlopCounterMode(display=False) as forward:
            y = model(images())
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1]
    fast, _ = pair()
    with FlopCounterMode(display=False) as counter:
        fast(images())
    operators = {str(k) for k in counter.get_flop_counts()["Global"]}
    assert any("chattn_cuda" in name for name in operators)


@feature(SECTION, "optimizers, several steps", "yes", "the curves coincide")
def test_training_curve() -> None:
    curves = []
    for model in pair():
        model.double()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        losses = []
        for i in range(5):
            optimizer.zero_grad()
            loss = model(images(4, 8 + i, torch.float64)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)
    assert curves[0][-1] < curves[0][0]
