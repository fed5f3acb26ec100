"""``python -m chattn_cuda verify``: accelerated models against the models they were made from."""

from __future__ import annotations

import argparse
import time

import torch

from chattn_cuda import backends
from chattn_cuda.cli.bench import quiet, set_threads
from chattn_cuda.cli.environment import environment
from chattn_cuda.cli.terminal import Table, Terminal, UsageError, require
from chattn_cuda.parity import FAMILIES, SAME, WITHOUT_ATTENTION, Family, Outcome, check

__all__ = ["add_arguments", "run"]

_KINDS = ("output", "gradients", "statistics")
_MODES = (("eval", False), ("train", True))
_TABLE = Table(
    "Largest relative difference to the model itself",
    ("model", "mode", "fused", *_KINDS, ""),
    left=2,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``verify``."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: the whole list")
    parser.add_argument("--backend", default="auto", help="default: auto")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument(
        "--short", action="store_true", help="leave out blocks that repeat: a minute, not three"
    )
    parser.add_argument(
        "--fuse", choices=("block", "tail"), default="tail", help="as for accelerate"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")


def run(arguments: argparse.Namespace) -> int:
    """Compare every model, in both modes, and print; returns 1 where numbers disagree."""
    require("verify", ("timm", "torchvision"))
    quiet()
    if arguments.threads is not None:
        set_threads(arguments.threads)
    families = _chosen(arguments.models, arguments.fuse)
    try:
        if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: there is no usable GPU")
    except RuntimeError as error:
        raise UsageError(f"--device {arguments.device}: no such device") from error
    try:
        backends.select(arguments.backend, arguments.device.partition(":")[0])
    except ValueError as error:
        raise UsageError(str(error)) from error
    terminal = Terminal()
    terminal.line(environment(arguments.device).line())
    began = time.perf_counter()
    outcomes: list[tuple[Family, str, Outcome | Exception]] = []
    widths = [max(len(f.name) for f in families), 5, 5, 7, 9, 10, 7]
    terminal.heading(_TABLE.title)
    terminal.line(_TABLE.line(_TABLE.columns, widths), wrap=False)
    for family in families:
        for mode, training in _MODES:
            outcome = _outcome(family, training, arguments)
            outcomes.append((family, mode, outcome))
            good = isinstance(outcome, Outcome) and outcome.same
            row = _TABLE.line(_row(family, mode, outcome), widths)
            terminal.line(row, "" if good else "bold red", wrap=False)
    for family, mode, outcome in outcomes:
        if isinstance(outcome, Exception):
            terminal.line(f"{family.name}, {mode} fails: {outcome}", "bold red")
            continue
        if not outcome.changed:
            terminal.line(f"{family.name}, {mode}: nothing was accelerated", "bold red")
        for kind, size in outcome.errors.items():
            if not size <= SAME:
                text = f"{family.name}, {mode}: {kind} differ most in {outcome.worst[kind]}"
                terminal.line(text, "bold red")
    bad = sum(isinstance(o, Exception) or not o.same for _, _, o in outcomes)
    seconds = time.perf_counter() - began
    text = f"{len(outcomes) - bad} of {len(outcomes)} agree in float64 to {SAME:g}"
    terminal.line(f"{text}; {seconds:.0f} s", "bold red" if bad else "green")
    return 1 if bad else 0


def _chosen(names: list[str], fuse: str) -> list[Family]:
    families = FAMILIES + WITHOUT_ATTENTION * (fuse == "tail")
    known = {f.name: f for f in families}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"unknown model {unknown[0]!r}; known are {', '.join(known)}")
    return [known[name] for name in names] or list(families)


def _outcome(family: Family, training: bool, arguments: argparse.Namespace) -> Outcome | Exception:
    # each layout once
    try:
        return check(
            family, training, arguments.backend, arguments.device, channels_last=not training,
            short=arguments.short, fuse=arguments.fuse,
        )  # fmt: skip
    except Exception as error:  # one model must not hide the others
        return error.with_traceback(None)  # whose frames would keep the model alive


def _row(family: Family, mode: str, outcome: Outcome | Exception) -> list[str]:
    if isinstance(outcome, Exception):
        return [family.name, mode, *[""] * 4, "fails"]
    numbers = [f"{outcome.errors[k]:.1e}" if k in outcome.errors else "" for k in _KINDS]
    count = f"{outcome.fused}/{len(outcome.changed) + len(outcome.left)}"
    return [family.name, mode, count, *numbers, "same" if outcome.same else "differs"]
