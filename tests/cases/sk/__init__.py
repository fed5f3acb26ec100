"""The selective kernel: its cases, and what the tests know of its kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda import activations, functional
from tests.cases.block import Block, Config, Variant, name_of
from tests.cases.sk.by_hand import BY_HAND
from tests.cases.sk.cuda import KERNELS
from tests.cases.sk.network import NETWORK
from tests.cases.sk.triton import TRITON


def _parameters(config: Config, random: Callable[..., Tensor]) -> dict[str, Tensor | None]:
    """The other branches are u1, u2, ...; x is the first."""
    c, m, d = config.shape[1], config.options.get("m", 2), config.options.get("d", 8)
    tail = (1, 1) if config.options.get("conv", False) else ()
    bias = config.options.get("bias", True)
    branches = {f"u{i}": random(*config.shape) + random(1, c, 1, 1) for i in range(1, m)}
    return {
        **branches,
        "w_reduce": random(d, c, *tail) / c**0.5,
        "b_reduce": 0.3 * random(d) + 0.3 if bias else None,
        "w_select": 2 * random(m * c, d, *tail) / d**0.5,
        "b_select": 0.5 * random(m * c) if bias else None,
    }


def _norm(h: Tensor) -> Tensor:
    """Statistics of the whole batch."""
    return F.batch_norm(h, None, None, training=True)


def _batch_norm(d: int) -> nn.Module:
    """The same as a module."""
    return nn.BatchNorm1d(d, affine=False, track_running_stats=False)


def _split(x: Tensor, parameters: dict[str, Any]) -> tuple[list[Tensor], list[Any]]:
    maps = [x, *(p for name, p in parameters.items() if name.startswith("u"))]
    return maps, [p for name, p in parameters.items() if not name.startswith("u")]


def _run(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any], backend: str
) -> tuple[Tensor, Tensor]:
    branches, weights = _split(x, parameters)
    return functional.selective_kernel(
        branches,
        *weights,
        norm=_batch_norm(weights[0].shape[0]) if options.get("norm", False) else None,
        act=options.get("act", "relu"),
        return_gate=True,
        backend=backend,
    )


def _eager(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    branches, (w1, b1, w2, b2) = _split(x, parameters)
    u = torch.stack(branches, 1)
    h = F.linear(u.sum(1).mean((2, 3)), w1.flatten(1), b1)
    if options.get("norm", False):
        h = _norm(h)
    h = activations.make_layer(options.get("act", "relu"))(h)
    s = F.linear(h, w2.flatten(1), b2).unflatten(1, (len(branches), -1)).softmax(1)
    return (u * s[..., None, None]).sum(1), s


def function(
    x: Tensor,
    scale: Tensor,
    w_reduce: Tensor,
    b_reduce: Tensor,
    w_select: Tensor,
    m: int = 2,
    stacked: bool = False,
    **keywords: Any,
) -> Any:
    """The branches are multiples of x, so that it takes a map and weights like the other blocks."""
    branches = [x, *(x * (scale * i)[:, None, None].to(x.dtype) for i in range(1, m))]
    if stacked:
        branches = list(torch.cat(branches, 1).chunk(m, 1))
    return functional.selective_kernel(branches, w_reduce, b_reduce, w_select, None, **keywords)


def _weights(channels: int, m: int = 2) -> list[tuple[int, ...]]:
    d = 2 if channels < 6 else 4
    return [(channels,), (d, channels), (d,), (m * channels, d)]


def _variant(**keywords: Any) -> Variant:
    return Variant(keywords, functools.partial(_weights, m=keywords.get("m", 2)))


_VARIANTS = (
    {"act": "silu"},
    {"m": 1},
    {"m": 3, "conv": True},
    {"m": 4, "act": "gelu", "bias": False},
    {"norm": True, "bias": False},
    {"norm": True, "m": 3, "bias": False, "act": "hard_swish"},
)

BLOCK = Block(
    "sk",
    _parameters,
    _run,
    _eager,
    shapes=(
        Config("stage1", (1, 128, 56, 56), {"d": 32}),
        Config("stage4", (4, 1024, 7, 7), {"d": 64, "conv": True}),
        Config("c228", (2, 228, 28, 28), {"d": 19, "m": 3}),
        Config("c300", (2, 300, 14, 14), {"d": 25, "m": 4}),
        Config("few", (2, 3, 40, 41), {"d": 3, "m": 4}),
        Config("whole_rows", (1, 250, 11, 9), {"d": 7}),
        Config("hw1", (3, 33, 1, 1), {"d": 5}),
        Config("hw197", (2, 24, 1, 197), {"d": 7, "m": 3}),
        Config("hw361", (2, 17, 19, 19), {"d": 19, "m": 4}),
        Config("hw90000", (1, 9, 300, 300), {"d": 16}),
        Config("wide", (2, 3840, 3, 3), {"d": 160}),
        Config("batch", (70, 20, 5, 5), {"d": 6, "norm": True, "bias": False}),
        Config("one", (1, 1, 1, 1), {"d": 1, "act": "silu"}),
        Config("empty", (0, 8, 4, 4), {"d": 4, "m": 3}),
    ),
    small=(
        Config("hw25", (2, 20, 5, 5), {"d": 6}),
        Config("hw49", (3, 17, 7, 7), {"d": 19, "m": 3, "conv": True}),
        Config("hw1", (5, 33, 1, 1), {"d": 5, "m": 4, "bias": False}),
        Config("hw361", (1, 8, 19, 19), {"d": 2, "m": 4}),
        Config("tall", (3, 70, 6, 6), {"d": 4, "norm": True, "bias": False}),
        Config("single", (2, 6, 4, 4), {"d": 2, "m": 1}),
        Config("one", (1, 1, 1, 1), {"d": 1, "act": "silu"}),
        Config("empty", (0, 8, 4, 4), {"d": 4}),
    ),
    options=tuple(Config(name_of(o), (3, 18, 5, 7), {"d": 6, **o}) for o in _VARIANTS),
    function=function,
    weights=_weights,
    variants={
        "relu": _variant(),
        "silu-three-gate": _variant(m=3, act="silu", return_gate=True),
        "four-slices": _variant(m=4, act="gelu", stacked=True),
    },
    smooth={"act": "silu"},
    is_map=lambda name: name == "x" or name.startswith("u"),
    gate_shape=lambda config: (config.shape[0], config.options.get("m", 2), config.shape[1]),
    maps=2,
    operators=("sk_squeeze", "sk_select", "sk_dot", "sk_gradient"),
    forward_operators=2,
    whole_on=("cpu", "cuda", "cuda_host"),
    not_finite={"sk": {"d": 6, "m": 3}},
    threads={"d": 9, "m": 3, "bias": False},
    by_hand=BY_HAND,
    kernels=(KERNELS, NETWORK),
    triton=TRITON,
    samples={
        "SKConv": lambda cls, channels: cls(channels, 32, 2, 1, 2),
        **dict.fromkeys(
            ("SplitAttn", "timm.layers.split_attn.SplitAttn"),
            lambda cls, channels: cls(channels, norm_layer=nn.BatchNorm2d),
        ),
    },
)
