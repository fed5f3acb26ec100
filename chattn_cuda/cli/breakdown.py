"""Where a model's time goes: its convolutions, its attention blocks, and what stands between."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from chattn_cuda.modules.tails import TailForward

__all__ = ["BLOCKS", "CONVOLUTIONS", "FUSED", "PARTS", "REST", "TAIL", "breakdown"]

CONVOLUTIONS = "convolutions"
TAIL = "norm, activation, addition"
FUSED = "fused tails"
BLOCKS = "attention blocks"
REST = "the rest"
PARTS = (CONVOLUTIONS, TAIL, FUSED, BLOCKS, REST)

_CALL, _PART = "chattn_cuda.call", "chattn_cuda.part: "
_NODE = "autograd::engine::evaluate_function: "
_OPERATOR = re.compile(r"chattn\w*::(\w+)")


@dataclass
class _Span:
    """The nodes of the graph that a module's forward made, by their numbers: [first, end)."""

    part: str
    first: int
    end: int = 0


def breakdown(
    calls: Iterable[tuple[nn.Module, Callable[[], object]]],
    blocks: Collection[str],
    device: str,
    rounds: int = 2,
) -> list[dict[str, float]]:
    """Milliseconds of a call by part, of several models in turn.

    Torch's profiler tells operators apart, not modules: hooks mark what runs on behalf of which. A
    node of the backward belongs to the module in whose forward it was made. A layer with a hook is
    in no fused tail: in those blocks the operators tell what they are.

    Args:
        calls: A model, and what runs it once: forward, or forward and backward.
        blocks: The names of the attention blocks in the models. Those of blocks with fused tails
            may be among them.
        device: "cpu", or "cuda" for the device's time.
        rounds: Profiled calls of each; medians are returned.

    Returns:
        For each call, the time of each of `PARTS`. They add up to the call's time under the
        profiler (on a GPU to that of its kernels).
    """
    calls = list(calls)
    blocks = set(blocks).difference(*(_tails(model) for model, _ in calls))
    found: list[list[dict[str, float]]] = [[] for _ in calls]
    for _ in range(rounds):
        for (model, call), times in zip(calls, found, strict=True):
            times.append(_profile(model, call, blocks, device))
    return [{part: median(t[part] for t in times) for part in PARTS} for times in found]


def _profile(
    model: nn.Module, call: Callable[[], object], blocks: Collection[str], device: str
) -> dict[str, float]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # nobody asked when its profiler starts
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with _marked(model, blocks) as spans, torch.profiler.profile(activities=activities) as profiler:
        with torch.profiler.record_function(_CALL):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    return _times(profiler.events(), spans, device)


@contextlib.contextmanager
def _marked(model: nn.Module, blocks: Collection[str]) -> Iterator[list[_Span]]:
    """Mark the parts while they run; what is inside an attention block is not looked at."""
    spans: list[_Span] = []
    running: list[tuple[Any, _Span]] = []
    handles = []

    def hook(module: nn.Module, part: str) -> None:
        def before(module: nn.Module, args: Any) -> None:
            span = _Span(part, torch._C._autograd._get_sequence_nr())
            range_ = torch.profiler.record_function(_PART + part)
            range_.__enter__()
            running.append((range_, span))

        def after(module: nn.Module, args: Any, y: Any) -> None:
            range_, span = running.pop()
            range_.__exit__(None, None, None)
            span.end = torch._C._autograd._get_sequence_nr()
            spans.append(span)

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    for name, part in _parts(model, blocks).items():
        hook(model.get_submodule(name), part)
    try:
        yield spans
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: nn.Module, blocks: Collection[str]) -> dict[str, str]:
    """The part that each module with a hook belongs to, by its name."""
    tails = _tails(model)
    around = {name.rpartition(".")[0] for name in blocks} - {""}
    found = {}
    for name, module in model.named_modules():
        if _is_inside(name, blocks):
            continue
        if isinstance(module, nn.modules.conv._ConvNd):
            found[name] = CONVOLUTIONS
        elif _is_inside(name, tails):
            continue
        elif name in blocks:
            found[name] = BLOCKS
        elif name in around | tails or _stands_between(module):
            found[name] = TAIL  # a residual block itself adds
    return found


def _tails(model: nn.Module) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, TailForward)}


def _is_inside(name: str, outer: Iterable[str]) -> bool:
    return any(name.startswith(f"{other}." if other else "") and name != other for other in outer)


def _stands_between(module: nn.Module) -> bool:
    """Whether it is a normalisation or an activation."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return True
    return type(module).__module__ == nn.ReLU.__module__


def _times(events: Any, spans: list[_Span], device: str) -> dict[str, float]:
    total = "device_time_total" if device == "cuda" else "cpu_time_total"
    times = dict.fromkeys(PARTS, 0.0)
    whole = 0.0
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # kernels, which count with what launched them
        ms = getattr(event, total) / 1e3
        if event.name == _CALL:
            whole = ms
        elif (part := _part_of(event, spans)) is not None:
            times[part] += ms
            outer = _enclosing(event, spans)
            if outer is not None:
                times[outer] -= ms
    times[REST] = whole - sum(times.values())
    return times


def _part_of(event: Any, spans: list[_Span]) -> str | None:
    """The part that an event belongs to by itself; None: to that around it."""
    name: str = event.name
    if name.startswith(_PART):
        return name.removeprefix(_PART)
    if name.startswith(_NODE):
        return _part_of_node(event.sequence_nr, spans)
    if (operator := _OPERATOR.fullmatch(name)) is not None:
        return FUSED if operator[1].startswith("tail_") else BLOCKS
    return None


def _enclosing(event: Any, spans: list[_Span]) -> str | None:
    """The part in which an event ran."""
    while (event := event.cpu_parent) is not None:
        if (part := _part_of(event, spans)) is not None:
            return part
    return None


def _part_of_node(number: int, spans: list[_Span]) -> str | None:
    """The innermost module that made the node; spans are in the order in which they ended."""
    return next((span.part for span in spans if span.first <= number < span.end), None)
