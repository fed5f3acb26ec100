"""What a block's problems must compute and move."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import reference
from tests.cases.eca import EcaProblem
from tests.cases.se.cuda import SeProblem
from tests.cases.sk.cuda import SkProblem
from tests.cases.sk.network import NO_NORM, OF_BATCH, SkBlockProblem
from tests.compare import assert_close
from tests.cuda_host.direct import Outcome, Process
from tests.cuda_host.problems import Problem, Shape

Tensors = dict[str, Tensor]
#: by buffer: bytes
Bytes = dict[str, int]


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
    return {k: t / t.shape[-1] ** 0.5 if k[0] == "w" else t for k, t in tensors.items()}


def _se(
    problem: SeProblem, x: Tensor, w2: Tensor, b2: Tensor, w1: Any = None, b1: Any = None
) -> Tensors:
    act = torch.nn.functional.silu if problem.rd else torch.nn.Identity()
    y, gate = reference.squeeze_excite(x, w1, b1, w2, b2, act)
    pooled = x.mean((2, 3))
    hidden = {"hidden": pooled @ w1.T + b1} if problem.rd else {}
    return {"pooled": pooled, **hidden, "gate": gate, "y": y}


def _eca(problem: EcaProblem, x: Tensor, weight: Tensor) -> Tensors:
    y, gate = reference.efficient_channel_attention(x, weight, circular=problem.circular)
    return {"pooled": x.mean((2, 3)), "gate": gate, "y": y}


def _sk(
    problem: SkProblem, logits: Tensor, prologue: Tensor | None = None, **maps: Tensor
) -> Tensors:
    branches = maps["x"].chunk(problem.m, 1) if problem.slices else tuple(maps.values())
    y, _ = reference.select_branches(branches, logits)
    pooled = reference.squeeze_branches(branches)
    if prologue is not None:  # other values, the same gradients
        with torch.no_grad():
            after = reference.after_prologue(branches, prologue.flatten(1))
            y.copy_(reference.select_branches(after, logits)[0])
            pooled.copy_(reference.squeeze_branches(after))
    return {"pooled": pooled, "y": y}


def _sk_block(
    problem: SkBlockProblem, w_reduce: Tensor, b_reduce: Tensor, w_select: Tensor,
    b_select: Tensor, weight: Any = None, bias: Any = None, mean: Any = None, var: Any = None,
    **maps: Tensor,
) -> Tensors:  # fmt: skip
    branches = tuple(maps.values())
    pooled = reference.squeeze_branches(branches)
    h = before = pooled @ w_reduce.T + b_reduce
    saved = {} if problem.norm == NO_NORM else {"hidden": before}
    if problem.norm == OF_BATCH:
        mean, var = before.mean(0), before.var(0, correction=0)
        saved |= {"batch_mean": mean, "batch_var": var}
    if problem.norm != NO_NORM:
        h = (before - mean) / (var + 1e-3).sqrt() * weight + bias
    activated = torch.relu(h)
    logits = (activated @ w_select.T + b_select).unflatten(1, (problem.m, -1))
    y, _ = reference.select_branches(branches, logits)
    return {"pooled": pooled, **saved, "activated": activated, "logits": logits, "y": y}


FORMULAS: dict[str, Callable[..., Tensors]] = {
    "se": _se,
    "eca": _eca,
    "sk": _sk,
    "sk_block": _sk_block,
}


@functools.cache
def results(problem: Problem, dtype: torch.dtype) -> Tensors:
    """By the formulas; float64 for the exact value, float32 for the yardstick."""
    inputs = {k: v.to(dtype) for k, v in inputs_of(problem).items()}
    given = {k[1:]: inputs.pop(k) for k in list(inputs) if k[0] == "d"}
    leaves = {k: v.requires_grad_() for k, v in inputs.items() if k not in problem.frozen}
    outputs = FORMULAS[problem.block](problem, **inputs)
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
def _se_traffic(problem: SeProblem, _: dict[str, int]) -> tuple[Bytes, Bytes]:
    size = problem.map_bytes
    return {"x": 2 * size}, {"dy": 2 * size, "x": size}


def _eca_traffic(problem: EcaProblem, plan: dict[str, int]) -> tuple[Bytes, Bytes]:
    size, tiles = problem.map_bytes, plan["stage_tiles"]
    forward = 2 * size
    if plan["in_one_launch"]:  # without a cluster, a block also reads the planes at its sides
        alone = tiles > 1 and not (problem.sm >= 90 and plan["cluster"] > 1)
        sides = tiles if problem.circular else tiles - 1
        planes = problem.n * sides * 2 * (problem.taps // 2) if alone else 0
        forward = size + planes * 4 * problem.h * problem.w
    return {"x": forward}, {"dy": 2 * size, "x": size}


def _sk_traffic(problem: SkProblem | SkBlockProblem, _: dict[str, int]) -> tuple[Bytes, Bytes]:
    maps = {k: b for k, b in map_bytes(problem.inputs).items() if k[0] == "x"}
    return {k: 2 * b for k, b in maps.items()}, {"dy": 2 * problem.map_bytes, **maps}


LOADS: dict[str, Callable[..., tuple[Bytes, Bytes]]] = {
    "se": _se_traffic,
    "eca": _eca_traffic,
    "sk": _sk_traffic,
    "sk_block": _sk_traffic,
}


def map_bytes(arrays: dict[str, Shape]) -> Bytes:
    """The size of each of the arrays that is a map."""
    return {k: 4 * math.prod(shape) for k, shape in arrays.items() if len(shape) == 4}


def check_traffic(problem: Problem, outcome: Outcome, plan: dict[str, int]) -> None:
    """The maps move as often as docs/design.md says, to the byte."""
    written = map_bytes(problem.outputs)
    stored = [{k: b for k, b in written.items() if (k[0] == "d") == back} for back in (False, True)]
    loaded = LOADS[problem.block](problem, plan)
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
