"""The benchmark of gpu_check.py: every row against eager PyTorch and torch.compile."""

from __future__ import annotations

import copy
import csv
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_steps import device

STAGES = ((256, 56), (512, 28), (1024, 14), (2048, 7))
BRANCHED = ((128, 56), (256, 28), (512, 14), (1024, 7))
BLOCKS = {"se": STAGES, "eca": STAGES, "sk": BRANCHED}  # sk: two branches
DIRECTIONS = ("forward+backward", "forward")
# Maps moved, by block and direction: with every input read once, and as the two-pass kernels do.
SINGLE_READ = {
    "se": {"forward": 2, "forward+backward": 5},
    "eca": {"forward": 2, "forward+backward": 5},
    "sk": {"forward": 3, "forward+backward": 8},
}
TWO_PASS = {
    "se": {"forward": 3, "forward+backward": 7},
    "eca": {"forward": 3, "forward+backward": 7},
    "sk": {"forward": 5, "forward+backward": 11},
}


@dataclass(frozen=True)
class Row:
    """What is measured."""

    block: str
    shape: tuple[int, int, int, int]
    dtype: str
    layout: str
    direction: str


def bench_rows(rehearse: bool) -> list[Row]:
    """Rows, those that matter most first."""
    if rehearse:
        shapes = [(2, 32, 14, 14), (2, 64, 7, 7)]
        rows = itertools.product(BLOCKS, shapes, DIRECTIONS)
        return [Row(block, s, "float32", "nchw", d) for block, s, d in rows]
    rows = []
    for n, dtype, layout, block in itertools.product(
        (128, 32, 64), ("bfloat16", "float32"), ("channels_last", "nchw"), BLOCKS
    ):
        rows += [
            Row(block, (n, c, h, h), dtype, layout, direction)
            for direction in DIRECTIONS
            for c, h in BLOCKS[block]
        ]
    return rows


def bench_row(row: Row, names: list[str], seconds: float) -> dict[str, float]:
    """Median milliseconds by implementation; every result is compared with eager PyTorch's."""
    import torch

    import chattn_cuda
    from chattn_cuda.cli import cases
    from chattn_cuda.cli.measure import errors, time_calls

    dtype = getattr(torch, row.dtype)
    memory_format = (
        torch.channels_last if row.layout == "channels_last" else torch.contiguous_format
    )
    where = device()
    size = torch.Size(row.shape).numel() * dtype.itemsize
    copies = 1
    if where == "cuda":  # so many that none is in the L2 cache when it is next read
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        copies = max(2, min(16, 2 * cache // size + 1))
    training = row.direction != "forward"

    def tensor() -> Any:
        values = torch.randn(row.shape, device=where, dtype=dtype)
        return values.contiguous(memory_format=memory_format)

    torch.manual_seed(0)
    peer = cases.BLOCKS[row.block].make(row.shape[1]).to(where, dtype)
    sets = [
        ([tensor().requires_grad_(training) for _ in range(cases.BLOCKS[row.block].maps)], tensor())
        for _ in range(copies)
    ]

    def make(name: str) -> Callable[[], list[Any]]:
        module: Any = copy.deepcopy(peer)
        if name == "torch.compile":
            module = torch.compile(module, fullgraph=True, dynamic=False)
        elif name != "eager":
            chattn_cuda.accelerate(module, name)
        turn = itertools.cycle(sets)

        def call() -> list[Any]:
            maps, dy = next(turn)
            if not training:
                with torch.no_grad():
                    return [module(*maps)]
            y = module(*maps)
            return [y, *torch.autograd.grad(y, [*maps, *module.parameters()], dy)]

        return call

    torch._dynamo.reset()
    calls: dict[str, Callable[[], list[Any]]] = {}
    expected = make("eager")()
    # Enough to notice nonsense; the tests know the numbers better. Eager uses TF32 for float32.
    limit = 0.01 if dtype == torch.float32 else 0.1
    for name in names:
        call = make(name)
        for got, want in zip(call(), expected, strict=True):
            error = errors(got[:8], want[:8])[1]
            if not error <= limit:
                raise AssertionError(f"{name} is off by {error:.1e} from eager PyTorch")
        calls[name] = call
    del expected
    samples = time_calls(calls, where, seconds=seconds, max_rounds=50, repeat=copies)
    return {name: sorted(times)[len(times) // 2] for name, times in samples.items()}


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product


def step_bench(rehearse: bool, folder: Path, seconds: float) -> int:
    """Rows without torch.compile first, then with it as far as the time goes."""
    import torch

    from chattn_cuda import backends
    from chattn_cuda.cli.bench import quiet
    from chattn_cuda.cli.environment import environment

    quiet()
    end = time.monotonic() + seconds
    ours = ["cpu"] if rehearse else ["cuda", "triton"]
    ours = [b for b in ours if backends.why_not(b, device()) is None]
    results: dict[Row, dict[str, float]] = {}
    problems: list[str] = []
    conditions = environment(device())

    def measure(row: Row, names: list[str], each: float) -> None:
        try:
            results.setdefault(row, {}).update(bench_row(row, names, each))
        except Exception as error:
            text = f"{row}: {', '.join(names)}: {type(error).__name__}: {error}"
            problems.append(text.splitlines()[0][:300])
        if device() == "cuda":
            torch.cuda.empty_cache()
        save(folder, results, conditions.line(), problems)  # what is there counts, if time runs out

    rows = bench_rows(rehearse)
    for row in rows:
        if time.monotonic() > end - seconds * 0.45:
            break
        measure(row, ["eager", *ours], 0.3)
    for row in [r for r in rows if r in results and results[r]]:
        if time.monotonic() > end - 12:
            break
        # Eager again: ratios are taken within one measurement only, so that is what is kept.
        measure(row, ["eager", "torch.compile", *ours], 0.3)
    print(conditions.line())
    print("\n".join(table(results)))
    print("\n".join(problems))
    print(f"RESULT {summary(results, ours)}; {len(problems)} problems")
    return 0 if results and not problems else 1


def summary(results: dict[Row, dict[str, float]], ours: list[str]) -> str:
    """Geometric means of the ratios."""
    parts = [f"{sum(map(bool, results.values()))} rows"]
    for name, base in itertools.product(ours, ("eager", "torch.compile")):
        ratios = [m[base] / m[name] for m in results.values() if name in m and base in m]
        if ratios:
            parts.append(f"{name} {geometric_mean(ratios):.2f}x {base} ({len(ratios)})")
    return ", ".join(parts)


def figures(row: Row, ms: float) -> tuple[float, float]:
    """(GB/s of the bytes that two passes move, GB/s of the single-read floor's bytes)."""
    n, c, h, w = row.shape
    size = n * c * h * w * {"float32": 4, "bfloat16": 2}[row.dtype]
    return (
        TWO_PASS[row.block][row.direction] * size / ms / 1e6,
        SINGLE_READ[row.block][row.direction] * size / ms / 1e6,
    )


def table(results: dict[Row, dict[str, float]]) -> list[str]:
    """A line per row: microseconds, and GB/s of the two passes' bytes."""
    names = list(dict.fromkeys(name for r in results.values() for name in r))
    lines = [f"{'row':58}" + "".join(f"{name + ' us':>18} {'GB/s':>6}" for name in names)]
    for row, times in results.items():
        label = (
            f"{row.block} {'x'.join(map(str, row.shape))} {row.dtype} {row.layout} {row.direction}"
        )
        cells = [
            f"{1e3 * times[n]:18.1f} {figures(row, times[n])[0]:6.0f}"
            if n in times
            else f"{'-':>18} {'-':>6}"  # noqa: E501
            for n in names
        ]
        lines.append(f"{label:58}" + "".join(cells))
    return lines


def save(
    folder: Path, results: dict[Row, dict[str, float]], conditions: str, problems: list[str]
) -> None:
    """Write gpu-bench.csv and gpu-bench.txt."""
    with (folder / "gpu-bench.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["block", "n", "c", "h", "w", "dtype", "layout", "direction",
                         "implementation", "ms", "two_pass_gb_s", "single_read_floor_gb_s",
                         "conditions"])  # fmt: skip
        for row, times in results.items():
            for name, ms in times.items():
                two_pass, floor = figures(row, ms)
                writer.writerow([row.block, *row.shape, row.dtype, row.layout, row.direction, name,
                                 f"{ms:.5f}", f"{two_pass:.1f}", f"{floor:.1f}", conditions])  # fmt: skip  # noqa: E501
    lines = [conditions, *table(results), *problems]
    (folder / "gpu-bench.txt").write_text("\n".join(lines) + "\n")
