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
from chattn_cuda.cli import chart
from chattn_cuda.cli.bench import default_device, quiet, set_threads
from chattn_cuda.cli.cases import BLOCKS, COMPILE, DIRECTIONS, EAGER, Row
from chattn_cuda.cli.chart import Panel
from chattn_cuda.cli.environment import environment
from chattn_cuda.cli.measure import FACTOR, Entry, Result, error_floor, errors, measure, time_calls
from chattn_cuda.cli.report import milliseconds, ratio_cell, size
from chattn_cuda.cli.terminal import Cell, Steps, Table, Terminal, UsageError, require
from chattn_cuda.convert import accelerate

__all__ = ["add_arguments", "photographs", "run"]

_NEEDS = ("timm", "torchvision", "sklearn", "PIL", "rich", "matplotlib")
_MODEL = "seresnet50"
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
    """

    batch: int = 8
    side: int = 224
    check_side: int = 160
    compile_blocks: bool = True
    compile_model: str = "inference"
    block_seconds: float = 1.5
    model_seconds: float = 12.0
    model_rounds: int = 3


_QUICK = Plan(2, 128, 96, False, "", 0.3, 2.0, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``demo``."""
    parser.add_argument("--quick", action="store_true", help="small images, without torch.compile")
    parser.add_argument("--batch", type=int, help="images per batch (default: 8; --quick: 2)")
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
    require("demo", _NEEDS)
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
        checks, converted = _check(plan, device, backend)
        timed = []
        for direction in (_INFERENCE, _STEP):
            steps.begin(f"{_MODEL}: {direction}")
            timed.append(_time_model(plan, direction, device, backend, steps))
        blocks = []
        compiled = (COMPILE,) if plan.compile_blocks else ()
        for direction in DIRECTIONS:
            for shape in shapes:
                row = Row("se", shape, "nchw", direction, torch.float32, device)
                steps.begin(f"SE block {size(row)}: {direction}")
                chosen = (EAGER, *compiled, backend)
                blocks.append(measure(row, chosen, seconds=plan.block_seconds, min_rounds=5))

    terminal.line(f"accelerate: {converted}")
    problems = _print_checks(terminal, checks, plan)
    panels = []
    for k, direction in enumerate(DIRECTIONS):
        picked = [result for result in blocks if result.row.direction == direction]
        entries, label = timed[k], (_INFERENCE, _STEP)[k]
        name = f"{_MODEL}, {label}"
        table, panel = _present(picked, entries, name, plan, checks[k].values(), backend)
        table.title = panel.title = ("Forward", "Forward + backward")[k]
        terminal.table(table)
        panels.append(panel)
    if device == "cpu" and plan.compile_blocks and plan.compile_model != "both":
        terminal.line(
            "- : compiling the training step takes minutes; --compile-training includes it", "dim"
        )
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
    """``count`` crops of the two photographs, (count, 3, side, side), normalised as for ImageNet."""
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


def _model(device: str) -> nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # With the usual zero_init_last, an untrained network's SE blocks would see zeros only.
        model: nn.Module = timm.create_model(_MODEL, pretrained=False, zero_init_last=False)
    return model.to(device)


def _images(count: int, side: int, device: str) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([_CLASSES[i % 2] for i in range(count)], device=device)
    return photographs(count, side).to(device), labels


# ---- the check ---------------------------------------------------------------------------------


def _check(plan: Plan, device: str, backend: str) -> tuple[list[dict[str, Entry]], str]:
    """The model's errors against itself in float64, per direction, and what was accelerated.

    Rounding alone moves the gradients of such a network by up to a percent, because it flips ReLUs
    near zero. So the measure is how far eager PyTorch itself is from float64: the accelerated model
    may be `FACTOR` times as far, by the rule that the blocks are held to.
    """
    model = _model(device)
    ours = copy.deepcopy(model)
    report = accelerate(ours, backend)
    images, labels = _images(2, plan.check_side, device)
    exact = _answers(copy.deepcopy(model).double(), images.double(), labels)
    eager, fused = _answers(model, images, labels), _answers(ours, images, labels)
    checks = []
    for e, v, x in zip(eager, fused, exact, strict=True):
        entries = {EAGER: Entry(error=errors(e, x)[1]), backend: Entry(error=errors(v, x)[1])}
        limit = FACTOR * errors(e, x)[1] + error_floor(e.dtype)
        error = entries[backend].error
        if error is None or not error <= limit:
            entries[backend].wrong = f"error {error:.1e}, above {limit:.1e}"
        checks.append(entries)
    count = sum(entry.cls == "SEModule" for entry in report.changed)
    return checks, f"{count} SEModule of {_MODEL} run fused, {len(report.left)} do not"


def _answers(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in eval mode; all gradients of a training step in one vector."""
    model.eval()
    with torch.no_grad():
        outputs = model(images)
    model.train()
    loss = F.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return outputs, torch.cat([g.flatten() for g in gradients])


def _print_checks(terminal: Terminal, checks: Sequence[dict[str, Entry]], plan: Plan) -> list[str]:
    """Print how the model compares with float64; returns what disagrees."""
    problems = []
    table = Table(
        f"Agreement: {_MODEL}, relative L2 distance to float64",
        ["", "eager", "chattn_cuda", ""],
    )
    for name, entries in zip(("outputs", "gradients"), checks, strict=True):
        eager, ours = entries.values()
        verdict = Cell("agree", "green") if ours.wrong is None else Cell("DISAGREE", "bold red")
        table.rows.append([name, f"{eager.error:.1e}", f"{ours.error:.1e}", verdict])
        if ours.wrong:
            problems.append(f"{_MODEL} {name}: {ours.wrong}")
    terminal.table(table)
    terminal.line(
        f"agree: at most {FACTOR:g} times as far from float64 as eager PyTorch is; its rounding "
        "flips ReLUs near zero, which moves the gradients",
        "dim",
    )
    return problems


# ---- the timing --------------------------------------------------------------------------------


def _time_model(
    plan: Plan, direction: str, device: str, backend: str, steps: Steps
) -> dict[str, Entry]:
    """Inference or a training step (forward, loss, backward, SGD update) on one batch."""
    model = _model(device)
    images, labels = _images(plan.batch, plan.side, device)
    modules: dict[str, Any] = {EAGER: model}
    training = direction == _STEP
    if plan.compile_model == "both" or (plan.compile_model == _INFERENCE and not training):
        torch._dynamo.reset()
        modules[COMPILE] = torch.compile(copy.deepcopy(model), dynamic=False)
    modules[backend] = copy.deepcopy(model)
    accelerate(modules[backend], backend)
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
    samples = time_calls(
        calls,
        device,
        seconds=plan.model_seconds,
        min_rounds=plan.model_rounds,
        hide_launches=False,
    )
    for name, times in samples.items():
        entries[name].samples = times
    return entries


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
    blocks: Sequence[Result],
    model: dict[str, Entry],
    name: str,
    plan: Plan,
    check: Any,
    backend: str,
) -> tuple[Table, Panel]:
    """A table and a chart panel with the blocks and the model of one direction."""
    table = Table(
        "",
        ["", "eager ms", "compile ms", "chattn_cuda ms", "vs eager", "vs compile", "max error"],
    )
    panel = Panel("")
    for result in blocks:
        error = result.entries[backend].error
        label = f"SE {size(result.row)}"
        _add(table, panel, label, result, backend, f"{error:.0e}" if error is not None else "-")
    _, ours = check
    table.rows.append(None)
    label = f"{name} {plan.batch} x 3 x {plan.side} x {plan.side}"
    whole = Result(blocks[0].row, model)
    _add(table, panel, label, whole, backend, f"{ours.error:.0e}", short=name.replace(", ", "\n"))
    return table, panel


def _add(
    table: Table,
    panel: Panel,
    label: str,
    result: Result,
    backend: str,
    error: str,
    short: str = "",
) -> None:
    times = {name: entry.ms for name, entry in result.entries.items()}
    cells: list[str | Cell] = [label]
    cells += [milliseconds(times.get(name)) for name in (EAGER, COMPILE, backend)]
    cells += [ratio_cell(result.ratio(base, backend)) for base in (EAGER, COMPILE)]
    table.rows.append([*cells, error])
    bars = {}
    for implementation, shown in ((EAGER, EAGER), (COMPILE, COMPILE), (backend, "chattn_cuda")):
        ratio = result.ratio(EAGER, implementation)
        if ratio is not None:
            bars[shown] = (ratio, f"{milliseconds(times[implementation])} ms")
    panel.add(short or label.removeprefix("SE "), bars, strong=bool(short))
