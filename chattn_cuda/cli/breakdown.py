"""Where a model's time goes: its convolutions, its attention blocks, and what stands between."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

__all__ = ["BLOCKS", "CONVOLUTIONS", "PARTS", "REST", "TAIL", "breakdown"]

CONVOLUTIONS = "convolutions"
TAIL = "batch norm, activation, addition"
BLOCKS = "attention blocks"
REST = "the rest"
PARTS = (CONVOLUTIONS, TAIL, BLOCKS, REST)

_CALL, _PART = "chattn_cuda.call", "chattn_cuda.part: "
_NODE = "autograd::engine::evaluate_function: "


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
    node of the backward belongs to the module in whose forward it was made.

    Args:
        calls: A model, and what runs it once: forward, or forward and backward.
        blocks: The names of the attention blocks in the models.
        device: "cpu", or "cuda" for the device's time.
        rounds: Profiled calls of each; medians are returned.

    Returns:
        For each call, the time of each of `PARTS`. They add up to the call's time under the
        profiler (on a GPU to that of its kernels).
    """
    calls = list(calls)
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
    """The part that each module outside of the attention blocks belongs to, by its name."""
    around = {name.rpartition(".")[0] for name in blocks} - {""}
    found = {}
    for name, module in model.named_modules():
        if any(name.startswith(block + ".") for block in blocks):
            continue
        if name in blocks:
            found[name] = BLOCKS
        elif isinstance(module, nn.modules.conv._ConvNd):
            found[name] = CONVOLUTIONS
        elif name in around or _stands_between(module):  # a residual block itself adds
            found[name] = TAIL
    return found


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
            continue
        part, outer = None, None
        if event.name.startswith(_PART):
            part, outer = event.name.removeprefix(_PART), _enclosing(event)
        elif event.name.startswith(_NODE):
            part = _part_of_node(event.sequence_nr, spans)
        if part is not None:
            times[part] += ms
        if outer is not None:
            times[outer] -= ms
    times[REST] = whole - sum(times.values())
    return times


def _enclosing(event: Any) -> str | None:
    """The part in whose forward this one ran."""
    while (event := event.cpu_parent) is not None:
        if event.name.startswith(_PART):
            name: str = event.name
            return name.removeprefix(_PART)
    return None


def _part_of_node(number: int, spans: list[_Span]) -> str | None:
    """The innermost module that made the node; spans are in the order in which they ended."""
    return next((span.part for span in spans if span.first <= number < span.end), None)
