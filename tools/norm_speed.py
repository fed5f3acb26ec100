"""Batch norm with an activation on the CPU: eager PyTorch's time over the fused one's.

    python tools/norm_speed.py

prints a line for each type, layout, activation and mode: the geometric mean of the shapes, and each
of them. One thread, its own time, medians of alternating calls; activations in place where they can
be, as timm's are; memory that was freed is kept, as it is between a model's layers. The rule about
what goes to the layers (docs/tail.md) comes from here; it is off meanwhile.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda.cli.measure import keep_freed_memory
from chattn_cuda.modules import deferred

SHAPES = (8, 32, 112, 112), (8, 96, 56, 56), (8, 256, 56, 56), (16, 512, 28, 28), (32, 2048, 7, 7)
MODES = "inference", "training", "frozen"
ROUNDS = 4


def call(module: nn.Module, x: Tensor, dy: Tensor, mode: str) -> None:
    """One call, with its backward unless in inference."""
    if mode == "inference":
        with torch.no_grad():
            module(x)
    else:
        module(x.detach().requires_grad_()).backward(dy)


def speed(module: nn.Module, x: Tensor, mode: str) -> float:
    """How many times faster it is fused."""
    fused = copy.deepcopy(module)
    chattn_cuda.accelerate(fused, fuse="tail")
    both, dy = (module, fused), torch.randn_like(x)
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(ROUNDS + 1):  # the first is for warming up
        for k in (i % 2, 1 - i % 2):
            begin = time.thread_time()
            call(both[k], x, dy, mode)
            times[k].append(time.thread_time() - begin)
    eager, ours = (statistics.median(t[1:]) for t in times)
    return eager / ours


def main() -> None:
    """Print them all."""
    torch.set_num_threads(1)
    keep_freed_memory()
    rule: Any = deferred
    rule._layers_are_faster = lambda *_: False
    acts = {a.__name__: a for a in (nn.ReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.Identity)}
    types = torch.float32, torch.bfloat16
    formats = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
    for dtype, layout, act, mode in itertools.product(types, formats, acts, MODES):
        found = []
        for shape in SHAPES:
            module = timm.layers.BatchNormAct2d(shape[1], act_layer=acts[act])
            x = torch.randn(shape).to(dtype, memory_format=formats[layout])
            found.append(speed(module.to(dtype).train(mode == "training"), x, mode))
        mean = math.exp(statistics.fmean(map(math.log, found)))
        each = " ".join(f"{v:.2f}" for v in found)
        print(f"{str(dtype)[6:]:9}{layout:14}{act:10}{mode:10}{mean:5.2f}x  ({each})", flush=True)


if __name__ == "__main__":
    main()
