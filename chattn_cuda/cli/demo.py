"""``python -m chattn_cuda demo``: a real model with and without this package, checked and timed.

The model is timm's seresnet50 with random weights, the images are the two photographs that
scikit-learn ships; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda import backends
from chattn_cuda.cli import breakdown, chart
from chattn_cuda.cli.bench import default_device, quiet, set_threads
from chattn_cuda.cli.cases import BLOCKS, COMPILE, DIRECTIONS, EAGER, Row
from chattn_cuda.cli.chart import Panel
from chattn_cuda.cli.demo_check import check_model, check_table
from chattn_cuda.cli.environment import environment
from chattn_cuda.cli.measure import (
    FACTOR,
    Entry,
    Result,
    Waiting,
    measure,
    time_calls,
)
from chattn_cuda.cli.report import milliseconds, noise_note, ratio_cell, size, time_cell
from chattn_cuda.cli.terminal import Cell, Steps, Table, Terminal, UsageError, require
from chattn_cuda.convert import accelerate

__all__ = ["add_arguments", "photographs", "run"]

_NEEDS = ("timm", "torchvision", "sklearn", "PIL", "rich", "matplotlib")
_MODEL, _PLAIN = "seresnet50", "resnet50"
_TAILS = "tails"
_INFERENCE, _STEP = "inference", "training step"
_CLASSES = (698, 985)  # ImageNet's palace and daisy, for want of labels


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
        batch: Images per batch.
        side: Their height and width.
        check_side: Height and width for the comparison with float64.
        compile_blocks: Measure torch.compile of the blocks too.
        compile_model: torch.compile of the model: "", "inference" or "both".
        block_seconds: For the rounds of one block row.
        model_seconds: For the rounds of the model, per direction.
        model_rounds: At least so many, per direction.
        profiled: Calls of each model under the profiler, per direction.
    """

    batch: int = 4
    side: int = 224
    check_side: int = 160
    compile_blocks: bool = True
    compile_model: str = "inference"
    block_seconds: float = 1.0
    model_seconds: float = 8.0
    model_rounds: int = 3
    profiled: int = 1


_QUICK = Plan(2, 128, 96, False, "", 0.3, 2.0, 2, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``demo``."""
    parser.add_argument("--quick", action="store_true", help="small images, without torch.compile")
    parser.add_argument("--batch", type=int, help="images per batch (default: 4; --quick: 2)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    parser.add_argument("--backend", default="auto", help="default: auto")
    parser.add_argument(
        "--compile-training",
        action="store_true",
        help="also torch.compile the model's training step, which takes minutes on a CPU",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("chattn_cuda_demo.png"),
        metavar="FILE",
        help="the chart, .png or .svg (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, measure, print and draw; returns 1 where outputs or gradients disagree."""
    require("the demo", _NEEDS)
    quiet()
    if arguments.threads is not None:
        set_threads(arguments.threads)
    plan = _QUICK if arguments.quick else Plan()
    if arguments.batch is not None:
        if arguments.batch < 1:
            raise UsageError(f"--batch must be at least 1, got {arguments.batch}")
        plan = replace(plan, batch=arguments.batch)
    if arguments.compile_training:
        plan = replace(plan, compile_blocks=True, compile_model="both")
    device, backend = _choose(arguments.backend)
    if arguments.output.suffix not in (".png", ".svg"):
        raise UsageError(f"--output must end in .png or .svg, got {str(arguments.output)!r}")

    began = time.perf_counter()
    terminal, conditions = Terminal(), environment(device)
    terminal.line(f"chattn_cuda demo: {_MODEL} on two photographs, backend {backend}", "bold cyan")
    terminal.line(conditions.line())
    shapes = BLOCKS["se"].shapes
    with terminal.steps(3 + len(DIRECTIONS) * len(shapes)) as steps:
        steps.begin(f"{_MODEL}: outputs and gradients against float64")
        checks, converted = check_model(
            _model(device), *_images(2, plan.check_side, device), backend
        )
        timed, parts = [], []
        for direction in (_INFERENCE, _STEP):
            steps.begin(f"{_MODEL}: {direction}")
            entries, times = _time_model(plan, direction, device, backend, steps)
            timed.append(entries)
            parts.append(times)
        blocks = []
        compiled = (COMPILE,) if plan.compile_blocks else ()
        for direction in DIRECTIONS:
            for shape in shapes:
                row = Row("se", shape, "nchw", direction, torch.float32, device)
                steps.begin(f"SE block {size(row)}: {direction}")
                chosen = (EAGER, *compiled, backend)
                blocks.append(measure(row, chosen, seconds=plan.block_seconds, min_rounds=5))

    terminal.line(f"accelerate({_MODEL}): {converted}")
    terminal.table(check_table(_MODEL, checks))
    terminal.line(
        f"float32 agrees where it is at most {FACTOR:g} times as far from float64 as eager PyTorch",
        "dim",
    )
    problems = [check.wrong for check in checks if check.wrong]
    panels = []
    for direction, label, entries, times in zip(
        DIRECTIONS, (_INFERENCE, _STEP), timed, parts, strict=True
    ):
        picked = [result for result in blocks if result.row.direction == direction]
        table, panel = _present(picked, entries, label, backend)
        panel.title = direction.capitalize().replace("+", " + ")
        images = f"{plan.batch}x3x{plan.side}x{plan.side}"
        table.title = f"{panel.title} ({_MODEL}: {label}, {images})"
        terminal.table(table)
        title = f"Where the time goes ({_MODEL}: {label}, by torch's profiler)"
        where = _parts_table(title, times)
        terminal.table(where)
        terminal.line(_what_blocks_can_give(times[0]), "dim")
        panels.append(panel)
    if device == "cpu" and plan.compile_blocks and plan.compile_model != "both":
        terminal.line(
            "- : compiling the training step takes minutes; --compile-training includes it", "dim"
        )
    note = noise_note(e for r in [*timed, *(b.entries for b in blocks)] for e in r.values())
    if note:
        terminal.line(note, "yellow")
    for result in blocks:
        for name, entry in result.entries.items():
            if entry.wrong:
                problems.append(f"{result.row.id}: {name}: {entry.wrong}")
    unavailable = {e.unavailable for r in blocks for e in r.entries.values() if e.unavailable}
    for reason in sorted(unavailable):
        terminal.line(f"torch.compile could not run: {reason}", "yellow")
    title = f"Squeeze-and-Excitation, float32: chattn_cuda ({backend} backend) and PyTorch"
    path = chart.draw(arguments.output, panels, title, conditions.line())
    terminal.line()
    terminal.line(f"chart: {path}")
    for problem in problems:
        terminal.line(f"WRONG: {problem}", "bold red")
    verdict = "something disagrees" if problems else "outputs and gradients agree"
    seconds = time.perf_counter() - began
    terminal.line(f"{verdict}; {seconds:.0f} s", "bold red" if problems else "bold green")
    return 1 if problems else 0


def photographs(count: int, side: int) -> Tensor:
    """Crops of the two photographs, (count, 3, side, side), normalised as for ImageNet."""
    from sklearn.datasets import load_sample_images

    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    pictures = [torch.tensor(p).permute(2, 0, 1).float() / 255 for p in load_sample_images().images]
    crops = []
    for i in range(count):
        picture, k = pictures[i % len(pictures)], i // len(pictures)
        square = min(picture.shape[1:])
        left = (picture.shape[2] - square) * (k % 4) // 3
        crop = picture[:, :square, left : left + square]
        crop = crop.flip(2) if k % 2 else crop
        crop = F.interpolate(crop[None], (side, side), mode="bilinear", antialias=True)[0]
        crops.append((crop - mean) / std)
    return torch.stack(crops)


def _choose(backend: str) -> tuple[str, str]:
    """The device and the backend to run on."""
    device = default_device()
    if backend != "auto" and torch.cuda.is_available():
        usable = [d for d in ("cuda", "cpu") if _why_not(backend, d) is None]
        device = usable[0] if usable else "cuda"
    if backend == "auto":
        chosen = backends.select("auto", device)
        if chosen == "reference":
            raise UsageError("no backend with kernels can run; see: python -m chattn_cuda doctor")
        return device, chosen
    reason = _why_not(backend, device)
    if reason is not None:
        raise UsageError(f"--backend {backend}: {reason}")
    return device, backend


def _why_not(backend: str, device: str) -> str | None:
    try:
        return backends.why_not(backend, device)
    except ValueError as error:
        return str(error)


def _model(device: str, name: str = _MODEL) -> nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # With the usual zero_init_last, an untrained network's SE blocks would see zeros only.
        model: nn.Module = timm.create_model(name, pretrained=False, zero_init_last=False)
    return model.to(device)


def _images(count: int, side: int, device: str) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([_CLASSES[i % 2] for i in range(count)], device=device)
    return photographs(count, side).to(device), labels


# ---- the timing --------------------------------------------------------------------------------


def _time_model(
    plan: Plan, direction: str, device: str, backend: str, steps: Steps
) -> tuple[dict[str, Entry], list[dict[str, float]]]:
    """Inference or a training step (forward, loss, backward, SGD update) on one batch.

    Returns:
        What was timed, and where the time of the eager and of the accelerated models goes.
    """
    model = _model(device)
    images, labels = _images(plan.batch, plan.side, device)
    modules: dict[str, Any] = {EAGER: model}
    training = direction == _STEP
    if plan.compile_model == "both" or (plan.compile_model == _INFERENCE and not training):
        torch._dynamo.reset()
        modules[COMPILE] = torch.compile(copy.deepcopy(model), dynamic=False)
    modules[backend] = copy.deepcopy(model)
    blocks = [entry.name for entry in accelerate(modules[backend], backend, "block").changed]
    modules[_TAILS] = copy.deepcopy(model)
    is_chosen = backend == backends.select("auto", device)  # then small maps go to the layers
    accelerate(modules[_TAILS], "auto" if is_chosen else backend)
    modules[_PLAIN] = _model(device, _PLAIN)
    entries = {name: Entry() for name in modules}
    calls: dict[str, Callable[[], object]] = {}
    for name, module in modules.items():
        module.train(training)
        call = _training_call(module, images, labels) if training else _inference(module, images)
        steps.detail(f"{_MODEL}: {direction}" + (", compiling" if name == COMPILE else ""))
        if name == COMPILE:
            try:
                call()
            except Exception as error:
                entries[name].unavailable = (str(error).strip() or repr(error)).splitlines()[0]
                continue
        calls[name] = call
    steps.detail(f"{_MODEL}: {direction}, timing")
    with Waiting() as waiting:
        samples = time_calls(
            calls,
            device,
            seconds=plan.model_seconds,
            min_rounds=plan.model_rounds,
            hide_launches=False,
        )
    for name, times in samples.items():
        entries[name].samples = times
        entries[name].waited = waiting.share if device == "cpu" else 0.0
    steps.detail(f"{_MODEL}: {direction}, where the time goes")
    pairs = [(modules[name], calls[name]) for name in (EAGER, backend, _TAILS)]
    return entries, breakdown.breakdown(pairs, blocks, device, plan.profiled)


def _inference(module: nn.Module, images: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return module(images)

    return call


def _training_call(module: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)

    def call() -> object:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
        return None

    return call


# ---- the tables and the chart ------------------------------------------------------------------


def _present(
    blocks: Sequence[Result], model: dict[str, Entry], label: str, backend: str
) -> tuple[Table, Panel]:
    """A table and a chart panel with the blocks and the model of one direction."""
    table = Table(
        "",
        ["", "eager ms", "compile", "chattn_cuda", "vs eager", "vs compile", "max err"],
    )
    panel = Panel("")
    for result in blocks:
        error = result.entries[backend].error
        text = "-" if error is None else f"{error:.0e}"
        table.rows.append([f"SE {size(result.row, 'x')}", *_cells(result, backend), text])
        panel.add(size(result.row), _bars(result, backend))
    whole = Result(blocks[0].row, model)
    table.rows += [None, [_MODEL, *_cells(whole, backend), "above"]]
    table.rows.append(["  with tails", *_cells(whole, _TAILS), "above"])
    table.rows.append([f"plain {_PLAIN}", time_cell(model[_PLAIN]), *[""] * 5])
    shown = Result(blocks[0].row, {k: e for k, e in model.items() if k != _PLAIN})
    panel.add(f"{_MODEL}\n{label}", _bars(shown, backend), strong=True)
    return table, panel


def _parts_table(title: str, times: Sequence[dict[str, float]]) -> Table:
    """The parts of the eager model, of that with fused blocks alone, and of that with tails."""
    names = ("eager ms", "blocks ms", "tails ms")
    table = Table(title, ["", *(column for name in names for column in (name, "share"))])
    wholes = [sum(parts.values()) for parts in times]
    for part in breakdown.PARTS:
        cells: list[str | Cell] = [part]
        for parts, whole in zip(times, wholes, strict=True):
            ms = parts[part]
            cells += [milliseconds(ms), f"{ms / whole:.0%}"] if ms else ["", ""]
        table.rows.append(cells)
    totals: list[str | Cell] = ["together"]
    for whole in wholes:
        totals += [milliseconds(whole), "" if whole is wholes[0] else ratio_cell(wholes[0] / whole)]
    table.rows += [None, totals]
    return table


def _what_blocks_can_give(times: dict[str, float]) -> str:
    """How much faster the model could be if what is replaced took no time."""
    whole = sum(times.values())
    blocks = times[breakdown.BLOCKS] / whole
    both = blocks + times[breakdown.TAIL] / whole
    return (
        f"Attention blocks are {blocks:.0%} of the eager model's time. If they took none, it would "
        f"run {1 / (1 - blocks):.2f}x as fast; if the tails around them took none, too, "
        f"{1 / (1 - both):.2f}x"
    )


def _cells(result: Result, backend: str) -> list[str | Cell]:
    entries = [result.entries.get(name, Entry()) for name in (EAGER, COMPILE, backend)]
    ratios = [result.ratio(baseline, backend) for baseline in (EAGER, COMPILE)]
    return [*map(time_cell, entries), *map(ratio_cell, ratios)]


def _bars(result: Result, backend: str) -> dict[str, tuple[float, str]]:
    bars = {}
    for name in result.entries:
        ratio = result.ratio(EAGER, name)
        if ratio is not None:
            shown = "chattn_cuda" if name == backend else name
            bars[shown] = (ratio, f"{milliseconds(result.entries[name].ms)} ms")
    return bars
