"""What a block's problems must compute and move."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tests.compare import assert_close
from tests.cuda_host.blocks import KERNELS
from tests.cuda_host.direct import Outcome, Process
from tests.cuda_host.kernels import Plans
from tests.cuda_host.problems import Problem, map_bytes

Tensors = dict[str, Tensor]


# ---- results ------------------------------------------------------------------------------------
@functools.cache
def inputs_of(problem: Problem) -> Tensors:
    """Random numbers; weights shrink what they sum up to the size of one.

    Logits lie around 100 or -100, by turns of the channels: exp of them overflows or vanishes.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {k: torch.randn(s, generator=generator) for k, s in problem.inputs.items()}
    if "logits" in tensors:
        tensors["logits"][..., ::2] += 100
        tensors["logits"][..., 1::2] -= 100
    if "var" in tensors:
        tensors["var"] = tensors["var"].exp()
    if problem.offset:
        tensors["x"] += problem.offset
    return {k: t / t.shape[-1] ** 0.5 if k[0] == "w" else t for k, t in tensors.items()}


@functools.cache
def results(problem: Problem, dtype: torch.dtype) -> Tensors:
    """By the formulas; float64 for the exact value, float32 for the yardstick."""
    inputs = {k: v.to(dtype) for k, v in inputs_of(problem).items()}
    given = {k[1:]: inputs.pop(k) for k in list(inputs) if k[0] == "d"}
    leaves = {k: v.requires_grad_() for k, v in inputs.items() if k not in problem.frozen}
    outputs = KERNELS[problem.block].formula(problem, **inputs)
    of = [outputs[k] for k in given]
    grads = torch.autograd.grad(of, list(leaves.values()), list(given.values()))
    return {**outputs, **{f"d{k}": g for k, g in zip(leaves, grads, strict=True)}}


def check_results(problem: Problem, outcome: Outcome) -> None:
    """In the order in which they are computed: the first wrong one is nearest to the cause."""
    exact, eager = results(problem, torch.float64), results(problem, torch.float32)
    for name, value in exact.items():
        assert_close(
            name,
            outcome.arrays[name],
            value,
            eager[name],
            dtype=torch.float32,
            allow_zero=problem.is_zero(name),
        )


# ---- traffic ------------------------------------------------------------------------------------
def check_traffic(problem: Problem, outcome: Outcome, plans: Plans) -> None:
    """The maps move as often as docs/design.md says, to the byte."""
    written = map_bytes(problem.outputs)
    stored = [{k: b for k, b in written.items() if (k[0] == "d") == back} for back in (False, True)]
    loaded = KERNELS[problem.block].loads(problem, plans)
    for (direction, report), loads, stores in zip(
        outcome.reports.items(), loaded, stored, strict=True
    ):
        for what, expected in (("load", loads), ("store", stores)):
            for name, wanted in expected.items():
                moved = getattr(report.buffers[name], f"{what}_bytes")
                assert moved == wanted, (
                    f"{direction}: {name}: {moved} bytes in {what}s, expected {wanted}"
                )


def complaint(process: Process, problem: Problem, **options: Any) -> str | None:
    """What a run says of a library: its error, or what is wrong with its results; or None."""
    outcome = process.run(problem, inputs_of(problem), **options)
    if outcome.error is not None:
        return outcome.error
    try:
        check_results(problem, outcome)
        if options.get("counters"):
            check_traffic(problem, outcome, process.plan(problem))
    except AssertionError as e:
        return str(e)
    return None
