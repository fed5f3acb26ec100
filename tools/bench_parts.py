"""Where a model's time goes, and how far the blocks are from the memory's speed: four minutes.

    python tools/bench_parts.py              results in bench/results, which `make report` draws
    python tools/bench_parts.py --quick      one model, one block

Parts of a model are those of torch's profiler (chattn_cuda.cli.breakdown), eager and accelerated in
turn. A block is measured in turn with a copy of its map, which reads it once and writes it once:
what takes as long as one and a half copies moves as much as a pass that reads the map twice.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import bench_models
import gpu_results
import torch
from bench_models import RESULTS, Row
from gpu_results import Times, emit, emit_row
from torch import nn
from variants import EAGER, OURS, device

import chattn_cuda
from chattn_cuda.cli import cases
from chattn_cuda.cli.bench import quiet
from chattn_cuda.cli.breakdown import PARTS, breakdown
from chattn_cuda.cli.environment import environment
from chattn_cuda.cli.measure import keep_freed_memory, time_calls

BLOCKS = ("se", "eca", "sk")
WORK = (("training", 8), ("inference", 8))
ROUNDS = 5
SECONDS = 1.0


def model_parts(row: Row, plan: bench_models.Plan) -> None:
    """Add a record per part of the model."""
    subject = bench_models.subject(row, plan)
    ours: nn.Module = copy.deepcopy(subject.module)
    blocks = [entry.name for entry in chattn_cuda.accelerate(ours, plan.backend).changed]
    pairs = [(m, functools.partial(subject.call, m)) for m in (subject.module, ours)]
    for _, call in pairs:
        call()
    rounds = [breakdown(pairs, blocks, device(), 1) for _ in range(ROUNDS)]
    for part in PARTS:
        times = {
            name: Times.of(values)
            for i, name in enumerate((EAGER, OURS))
            if any(values := [found[i][part] for found in rounds])
        }
        if times:
            emit_row("parts", f"{row}: {part}", "ms", times)


def block_floor(row: cases.Row) -> None:
    """Add a record of a block in eager PyTorch, fused, and of a copy of its map."""
    problem = cases.Problem(row)
    backend = cases.fused_backends(row.device)[0]
    x = torch.randn(row.shape, dtype=row.dtype, device=row.device)
    x = x.contiguous(memory_format=cases.LAYOUTS[row.layout])
    y = torch.empty_like(x)
    calls: dict[str, Callable[[], object]] = {"copy": lambda: y.copy_(x)}
    calls |= {EAGER: problem.call(EAGER), backend: problem.call(backend)}
    samples = time_calls(calls, row.device, seconds=SECONDS)
    shape = "x".join(map(str, row.shape))
    name = f"{row.block} {shape} {row.dtype_name} {row.direction}, {row.layout}"
    emit_row("floor", name, "ms", {k: Times.of(v) for k, v in samples.items()})


def main(arguments: Sequence[str]) -> int:
    """Measure; the records are written as they are measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--quick", action="store_true", help="one small model, one block")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (bench/results)")
    options = parser.parse_args(arguments)
    quiet()
    if device() == "cpu":
        keep_freed_memory()
    path = options.results / f"parts-{device()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.environ[gpu_results.FILE] = str(path)
    plan = bench_models.QUICK if options.quick else bench_models.Plan()
    command = "python tools/bench_parts.py" + " --quick" * options.quick
    text = f"{environment(device()).line()}, {plan.side} x {plan.side} images, float32"
    emit("conditions", text=text, command=command)
    for work, batch in WORK:
        for name in plan.names[: 1 if options.quick else None]:
            row = Row(name, work == "training", batch, "channels_last")
            print(row, flush=True)
            model_parts(row, plan)
    for block in BLOCKS[: 1 if options.quick else None]:
        for of_block in cases.rows(block, device()):
            print(of_block.id, flush=True)
            block_floor(of_block)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
