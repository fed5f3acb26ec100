"""Peak memory of a training step of whole models on a CPU: eager PyTorch, and both ways to fuse.

    python tools/model_memory.py                     bench/results/memory-cpu.jsonl; ten minutes
    python tools/model_memory.py --models resnet50   one model
    python tools/model_memory.py --backend cpu       with a tail for small maps, too
    python tools/model_memory.py --write             docs/tail.md, from bench/published

Batch 8, 224 x 224 images, float32, channels_last. It is what torch's allocator has handed out at
once (chattn_cuda.cli.measure.peak_memory) with the weights and the images: activations that wait
for the backward, gradients, what an operation needs meanwhile. A step is forward, loss and
backward, from no gradients to all of them. It takes no time into account, so that other work on
the machine does not matter. What convolution libraries allocate by themselves is not in it.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_results
from bench_models import NAMES, RESULTS, ROOT, Plan, Row, conditions, subject, write_section
from gpu_results import Record, Times, emit, emit_row, read, rows

TABLE, UNIT = "memory", "GiB"
EAGER = "eager"
FUSE = ("block", "tail")
MODELS = ("seresnet50", "resnet50", *NAMES[1:])
FILE = "memory-cpu.jsonl"
PAGE = ROOT / "docs" / "tail.md"
SECTION = "memory"  # of the page


def name_of(fuse: str) -> str:
    """Of a variant, which says how it is fused."""
    return f'fuse="{fuse}"'


def variants(module: Any, backend: str) -> Iterator[tuple[str, Any]]:
    """The network as it is, and accelerated in each way."""
    import chattn_cuda

    yield EAGER, module
    for fuse in FUSE:
        fused = copy.deepcopy(module)
        chattn_cuda.accelerate(fused, backend, fuse)
        yield name_of(fuse), fused


def measure(row: Row, plan: Plan) -> dict[str, Times]:
    """GiB of a step by variant."""
    from chattn_cuda.cli.measure import peak_memory

    found, step = {}, subject(row, plan)
    for name, module in variants(step.module, plan.backend):
        most, _ = peak_memory(lambda module=module: step.call(module))
        held = [*module.parameters(), *module.buffers()]
        most += step.inputs + sum(t.numel() * t.element_size() for t in held)
        found[name] = Times(*3 * [most / 2**30], 1)
        print(f"{row}, {name}: {most / 2**30:.3f} GiB", flush=True)
    return found


def markdown(records: Sequence[Record]) -> str:
    """The table of docs/tail.md."""
    head = conditions(records)
    names = [EAGER, *map(name_of, FUSE)]
    titles = [EAGER, *(f"`{name}`" for name in names[1:])]
    lines = [
        f"| {' | '.join(['MiB', *titles, 'tails to eager'])} |",
        f"|---{'|---:' * (len(names) + 1)}|",
    ]
    for (_, row), (_, times) in rows(records).items():
        gib = [times[name].median for name in names]
        cells = [f"{1024 * value:.0f}" for value in gib]
        change = f"**{gib[-1] / gib[0] - 1:+.0%}**".replace("-", "\u2212")
        lines.append(f"| {row.split()[0]} | {' | '.join(cells)} | {change} |")
    return "\n".join([*lines, "", f"Measured on {head['text']},", f"by `{head['command']}`.", ""])


def run(names: Sequence[str], plan: Plan, folder: Path) -> Path:
    """Measure; the records lie in the returned file."""
    from chattn_cuda.cli.bench import quiet
    from chattn_cuda.cli.environment import environment

    quiet()
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.environ[gpu_results.FILE] = str(path)
    command = "python tools/model_memory.py"
    if names != MODELS:
        command += f" --models {','.join(names)}"
    if plan.backend != "auto":
        command += f" --backend {plan.backend}"
    text = f"{environment('cpu').line()}, {plan.side} x {plan.side} images, float32"
    emit("conditions", text=text, command=command)
    for name in names:
        row = Row(name, True, 8, "channels_last")
        emit_row(TABLE, str(row), UNIT, measure(row, plan))
    return path


def main(arguments: Sequence[str]) -> int:
    """Measure and print, or write the page's table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", help=f"names, with commas (default: {','.join(MODELS)})")
    parser.add_argument("--backend", default="auto", help="for accelerate (default: auto)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (bench/results)")
    parser.add_argument("--write", action="store_true", help="write docs/tail.md, measure nothing")
    options = parser.parse_args(arguments)
    if options.write:
        published = read(ROOT / "bench" / "published" / FILE)
        write_section(PAGE, markdown(published), SECTION)
        return 0
    names = tuple(options.models.split(",")) if options.models else MODELS
    print(markdown(read(run(names, Plan(backend=options.backend), options.results))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
