"""The fused tail: its cases, and what the tests know of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chattn_cuda import activations, backends
from chattn_cuda.ops import in_format_of
from chattn_cuda.ops.tail import Gate, Norm, Tail, apply_tail
from chattn_cuda.reference import accumulation_dtype
from tests.cases.block import Block, Config, name_of
from tests.cases.tail.cuda import KERNELS
from tests.cases.tail.triton import TRITON

_EPS, _SLOPE = 1e-3, 0.1
_STATISTICS = ("mean", "var")


def _code(name: str) -> tuple[int, float]:
    return activations.ACTIVATIONS[name].code, _SLOPE


def _function(name: str) -> Callable[[Tensor], Tensor]:
    return activations.ACTIVATIONS[name].with_param(_SLOPE)


def _has(options: dict[str, Any], name: str) -> bool:
    """Of what a tail has, but for what an option says."""
    return bool(options.get(name, name != "drop"))


def _parameters(config: Config, random: Callable[..., Tensor]) -> dict[str, Tensor | None]:
    c, options = config.shape[1], config.options
    gate, rd = options.get("gate", "se"), max(2, c // 4)
    found: dict[str, Tensor | None] = {}
    if _has(options, "residual"):
        found["residual"] = random(*config.shape)
    if _has(options, "affine"):
        found |= {"weight": 1 + 0.3 * random(c), "bias": random(c)}
    if gate == "se":
        found |= {"w1": random(rd, c) / c**0.5, "b1": random(rd)}
        found |= {"w2": random(c, rd) / rd**0.5, "b2": random(c)}
    elif gate == "eca":
        found["kernel"] = random(1, 1, 3)
    return found


def _statistics(x: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Those that the norm goes by: of the batch, or running ones."""
    if _has(options, "of_batch"):
        var, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
        return mean, var
    around = torch.linspace(-1, 1, x.shape[1], dtype=x.dtype, device=x.device)
    return around, 1 + around.square()


def _factors(x: Tensor, options: dict[str, Any]) -> Tensor | None:
    """Of stochastic depth: the last sample is gone."""
    if not _has(options, "drop"):
        return None
    return (2.0 * (torch.arange(x.shape[0], device=x.device) < x.shape[0] - 1).to(x.dtype))[:, None]


def _run(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any], backend: str
) -> tuple[Tensor, Tensor]:
    acc = accumulation_dtype(x.dtype)
    given = dict(parameters)
    residual, weight, bias = (given.pop(k, None) for k in ("residual", "weight", "bias"))
    gate = None
    if options.get("gate", "se") == "se":
        gate = Gate("se", (*_code("relu"), _code("sigmoid")[0]))
    elif options["gate"] == "eca":
        gate = Gate("eca", (_code("sigmoid")[0], False))
    mean, var = _statistics(x.to(acc), options)
    of_batch = _has(options, "of_batch")
    factors = _factors(x.to(acc), options)
    norm = Norm(None, None, _EPS) if of_batch else Norm(mean, var, _EPS)
    inner, act = _code(options.get("inner", "identity")), _code(options.get("act", "relu"))
    tail = Tail(norm, gate, inner, act, factors)
    tensors = (x, residual, weight, bias, *given.values())
    namespace = backends.get(backend).namespace
    if namespace is None:
        y = in_format_of(x, *tail.formula(None, None, *tensors))
    else:
        y, *measured = apply_tail(namespace, tail, *tensors)
        mean, var = measured if of_batch else (mean, var)
    return y, torch.stack((mean, var))


def _eager(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """As a network's layers."""
    p = parameters
    mean, var = (t.to(x.dtype) for t in _statistics(x.to(accumulation_dtype(x.dtype)), options))
    of_batch = _has(options, "of_batch")
    y = F.batch_norm(
        x, mean.clone(), var.clone(), p.get("weight"), p.get("bias"), of_batch, 0.0, _EPS
    )
    y = _function(options.get("inner", "identity"))(y)
    pooled = y.mean((2, 3))
    if "w1" in p:
        hidden = F.relu(F.linear(pooled, p["w1"], p["b1"]))  # type: ignore[arg-type]
        y = y * torch.sigmoid(F.linear(hidden, p["w2"], p["b2"]))[:, :, None, None]  # type: ignore
    elif "kernel" in p:
        s = torch.sigmoid(F.conv1d(pooled[:, None], p["kernel"], padding=1))  # type: ignore[arg-type]
        y = y * s[:, 0, :, None, None]
    factors = _factors(x, options)
    if factors is not None:
        y = y * factors[:, :, None, None]
    if "residual" in p:
        y = y + p["residual"]
    return _function(options.get("act", "relu"))(y), torch.stack((mean, var))


_NO = {"residual": False, "gate": "none"}
_OPTIONS: tuple[dict[str, Any], ...] = (
    {"gate": "none"},
    {"gate": "eca"},
    {"act": "identity"},
    {"act": "silu"},
    {"act": "leaky_relu"},
    {"act": "relu6"},
    {"residual": False},
    {"affine": False, "gate": "eca"},
    {"of_batch": False},
    {"drop": True},
    {"drop": True, "gate": "none"},
    {"of_batch": False, "residual": False, "inner": "silu", "act": "identity"},
    {"residual": False, "inner": "silu", "act": "identity"},
    {"residual": False, "inner": "relu", "act": "identity"},
    {"inner": "hard_swish", "act": "relu"},
    {"inner": "gelu", "act": "silu", "gate": "eca"},
    {**_NO},
    {**_NO, "act": "silu"},
    {**_NO, "of_batch": False},
    {**_NO, "act": "identity", "of_batch": False, "affine": False},
)

BLOCK = Block(
    "tail",
    _parameters,
    _run,
    _eager,
    shapes=(
        Config("stage", (2, 64, 28, 28)),
        Config("many", (33, 24, 7, 7)),
        Config("wide", (3, 300, 5, 5)),
        Config("long", (1, 5, 65, 67)),
    ),
    small=(
        Config("small", (2, 20, 7, 6)),
        Config("odd", (3, 13, 5, 3)),
        Config("one", (4, 9, 1, 1)),
    ),
    options=tuple(Config(name_of(o), (2, 18, 6, 5), o) for o in _OPTIONS),
    operator="",
    is_map=lambda name: name in ("x", "residual"),
    gate_shape=lambda config: (2, config.shape[1]),
    not_finite={"tail": {"of_batch": False, "inner": "silu", "gate": "none"}},
    threads={},
    kernels=(KERNELS,),
    triton=TRITON,
)
