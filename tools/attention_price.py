"""What attention costs in training: eager resnet50, and seresnet50 with and without `accelerate`.

    python tools/attention_price.py

runs the three in turn in one process, as rows that are minutes apart differ by more than attention
costs: ms a step, median and quartiles.
"""

from __future__ import annotations

import statistics
import time

import timm
import torch

import chattn_cuda
from chattn_cuda.cli.measure import keep_freed_memory

BATCH, SIDE, ROUNDS = 8, 224, 14
NAMES = "eager resnet50", "accelerated seresnet50", "eager seresnet50"


def main() -> None:
    """Print both layouts."""
    keep_freed_memory()
    for layout in (torch.channels_last, torch.contiguous_format):
        models = [timm.create_model(name.split()[1]).train() for name in NAMES]
        models = [model.to(memory_format=layout) for model in models]
        chattn_cuda.accelerate(models[1])
        x = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=layout)
        times: list[list[float]] = [[] for _ in models]
        for i in range(ROUNDS + 2):  # the first two are for warming up
            for k in (0, 1, 2) if i % 2 else (2, 1, 0):
                begin = time.perf_counter()
                models[k](x).square().mean().backward()
                times[k].append(1e3 * (time.perf_counter() - begin))
                models[k].zero_grad()
        print(f"training, batch {BATCH}, {SIDE} x {SIDE}, float32, {str(layout).split('.')[1]}")
        for name, of_model in zip(NAMES, times, strict=True):
            low, median, high = statistics.quantiles(of_model[2:], n=4)
            print(f"  {name:<24} {median:5.0f} ({low:.0f}-{high:.0f}) ms")


if __name__ == "__main__":
    main()
