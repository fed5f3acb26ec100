"""One process of two, started by torchrun: see test_training."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.compat.models import images, pair


def _gradients(mode: str) -> dict[str, Tensor]:
    fast, _ = pair()
    fast.eval()
    model: Any = fast
    if mode == "ddp":
        model = DistributedDataParallel(fast)
    else:
        for block in fast.blocks:
            if any(True for _ in block.parameters()):
                fully_shard(block)
        fully_shard(fast)
    mine = images(4).chunk(2)[dist.get_rank()]
    model(mine).sin().mean().backward()
    grads = {k: p.grad for k, p in fast.named_parameters()}
    if mode == "fsdp2":
        grads = {k: g.full_tensor() for k, g in grads.items()}
    return grads


def main(mode: str, out: str) -> None:
    """Run ``mode`` and let rank 0 save the result."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    result = _gradients(mode)
    if dist.get_rank() == 0:
        torch.save(result, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Gloo's threads may still hold tensors; one that lets go of a tensor while the interpreter is
    # taken down aborts the process (PyTorch, pull request 179291).
    sys.stdout.flush()
    os._exit(0)
