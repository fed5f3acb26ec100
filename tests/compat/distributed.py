"""One process of two, started by torchrun: see test_training."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.compat.models import images, pair
from tests.peers import SELayer


def _ddp(fast: Any, x: Tensor) -> dict[str, Tensor]:
    model = DistributedDataParallel(fast)
    model(x.chunk(2)[dist.get_rank()]).sin().mean().backward()
    return {k: p.grad for k, p in fast.named_parameters()}


def _fsdp1(fast: Any, x: Tensor) -> dict[str, Tensor]:
    """With the parameters' own names and shapes, in `summon_full_params`."""
    model = FullyShardedDataParallel(fast, use_orig_params=True, device_id=torch.device("cpu"))
    model(x.chunk(2)[dist.get_rank()]).sin().mean().backward()
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        return {k: p.grad.clone() for k, p in model.module.named_parameters()}


def _fsdp2(fast: Any, x: Tensor) -> dict[str, Tensor]:
    for block in fast.blocks:
        if any(True for _ in block.parameters()):
            fully_shard(block)
    fully_shard(fast)
    fast(x.chunk(2)[dist.get_rank()]).sin().mean().backward()
    return {k: p.grad.full_tensor() for k, p in fast.named_parameters()}


def _pipeline(fast: Any, x: Tensor) -> dict[str, Tensor]:
    """The first blocks in one process, the others in the second; the samples one by one."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = fast.blocks[5:], fast.head

        def forward(self, u: Tensor) -> Tensor:
            return self.head(self.blocks(u).mean((2, 3)))

    rank = dist.get_rank()
    part = Last() if rank else nn.Sequential(fast.stem, fast.blocks[:5])
    stage = PipelineStage(part, rank, 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, len(x), loss_fn=lambda y, target: y.sin().mean())
    schedule.step(*(() if rank else (x,)), target=x if rank else None)
    grads: list[Any] = [None, None]
    mine = {k: p.grad for k, p in fast.named_parameters() if p.grad is not None}
    dist.all_gather_object(grads, mine)
    found = {**grads[0], **grads[1]}
    return {k: found[k] for k, _ in fast.named_parameters()}


def _tensor_parallel(fast: Any, x: Tensor) -> dict[str, Tensor]:
    """A block's two layers are split over the processes."""
    (block,) = (m for m in fast.blocks if isinstance(m, SELayer))
    block.fc[1].inplace = False  # torch takes none behind a split layer
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(block.fc, init_device_mesh("cpu", (2,)), plan)
    fast(x).sin().mean().backward()
    grads = {k: p.grad for k, p in fast.named_parameters()}
    return {k: g.full_tensor() if isinstance(g, DTensor) else g for k, g in grads.items()}


MODES = {
    "ddp": _ddp,
    "fsdp1": _fsdp1,
    "fsdp2": _fsdp2,
    "pipeline": _pipeline,
    "tensor_parallel": _tensor_parallel,
}


def main(mode: str, out: str) -> None:
    """Run ``mode`` and let rank 0 save the result."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    fast, _ = pair()
    result = MODES[mode](fast.eval(), images(4))
    if dist.get_rank() == 0:
        torch.save(result, out)


def leave() -> NoReturn:
    """End the process, once all have come so far.

    Gloo's threads may still hold tensors; one that lets go of a tensor while the interpreter is
    taken down aborts the process (PyTorch, pull request 179291).
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
