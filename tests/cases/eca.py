"""Efficient channel attention in the case table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from chattn_cuda import activations, functional
from tests.cases.block import Block, Config, Variant, name_of
from tests.cuda_host.problems import SIGMOID, Problem, Shape


def _parameters(config: Config, random: Callable[..., Tensor]) -> dict[str, Tensor | None]:
    k = config.options.get("k", 3)
    channels = config.shape[1] if config.options.get("per_channel", False) else 1
    return {"weight": random(channels, 1, k) / k**0.5}


def _run(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any], backend: str
) -> tuple[Tensor, Tensor]:
    return functional.efficient_channel_attention(
        x,
        **parameters,
        gate=options.get("gate", "sigmoid"),
        padding_mode="circular" if options.get("circular", False) else "zeros",
        return_gate=True,
        backend=backend,
    )


def _eager(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    (weight,) = parameters.values()
    k, mode = weight.shape[2], "circular" if options.get("circular", False) else "constant"
    p = F.pad(x.mean((2, 3))[:, None], (k // 2, k // 2), mode=mode)
    if weight.shape[0] == 1:
        z = F.conv1d(p, weight)[:, 0]
    else:
        z = F.conv1d(p[:, 0].unfold(1, k, 1), weight, groups=weight.shape[0])[:, :, 0]
    s = activations.make_layer(options.get("gate", "sigmoid"))(z)
    return x * s[:, :, None, None], s


_VARIANTS = (
    *({"gate": a.name} for a in activations.ACTIVATIONS.values() if a.is_gate),
    {"k": 1},
    {"k": 7},
    {"circular": True},
    {"per_channel": True},
    {"k": 1, "per_channel": True, "gate": "tanh"},
    {"k": 5, "circular": True, "per_channel": True},
    {"k": 37, "circular": True},
    {"k": 41},
    {"k": 37, "circular": True, "per_channel": True, "gate": "hard_sigmoid"},
)


# ---- CUDA kernels on the host execution layer ----------------------------------------------------
@dataclass(frozen=True)
class EcaProblem(Problem):
    """Efficient channel attention."""

    taps: int
    per_channel: bool = False
    circular: bool = False

    block = "eca"
    plan_fields = (
        "in_one_launch", "stage_tiles", "cluster", "kind", "apply_samples", "apply_parts",
        "grad_splits", "tap_tiles",
    )  # fmt: skip

    @property
    def inputs(self) -> dict[str, Shape]:
        size = self.map_shape
        return {"x": size, "dy": size, "weight": (self.c if self.per_channel else 1, 1, self.taps)}

    @property
    def outputs(self) -> dict[str, Shape]:
        planes, size = (self.n, self.c), self.map_shape
        gradients = {"dx": size, "dweight": self.inputs["weight"]}
        return {"y": size, "pooled": planes, "gate": planes, **gradients}

    @property
    def sizes(self) -> list[int]:
        gate = [self.taps, int(self.per_channel), SIGMOID, int(self.circular)]
        return [self.n, self.c, self.h * self.w, int(self.channels_last), *gate]


PROBLEMS = (
    EcaProblem("block", 3, 20, 7, 5, 5),
    EcaProblem("cluster", 2, 70, 9, 9, 3),
    EcaProblem("cluster_circular", 1, 70, 9, 9, 3, per_channel=True, circular=True),
    EcaProblem("sides", 2, 70, 9, 9, 3, sm=80),
    EcaProblem("sides_circular", 1, 70, 9, 9, 3, circular=True, sm=80),
    EcaProblem("many_taps", 2, 70, 6, 6, 41),
    EcaProblem("many_taps_each", 1, 70, 5, 5, 37, per_channel=True, circular=True),
    EcaProblem("planes_in_parts", 1, 2, 130, 131, 1),
    EcaProblem("rows", 40, 66, 3, 3, 9, per_channel=True, channels_last=True),
    EcaProblem("batch_rows", 96, 356, 1, 1, 3, channels_last=True),
)


BLOCK = Block(
    "eca",
    _parameters,
    _run,
    _eager,
    shapes=(
        Config("stage1", (1, 256, 56, 56), {"k": 5}),
        Config("stage4", (4, 2048, 7, 7), {"k": 7}),
        Config("c228", (2, 228, 28, 28), {"k": 5, "circular": True}),
        Config("c300", (2, 300, 14, 14), {"k": 5, "per_channel": True}),
        Config("few", (4, 5, 40, 41), {"k": 3}),
        Config("few_circular", (1, 7, 31, 17), {"k": 5, "circular": True}),
        Config("c520", (1, 520, 9, 10), {"k": 5, "circular": True}),
        Config("hw1", (3, 33, 1, 1), {"k": 3}),
        Config("hw197", (2, 24, 1, 197), {"k": 3}),
        Config("hw361", (2, 17, 19, 19), {"k": 9}),
        Config("hw90000", (1, 9, 300, 300), {"k": 3, "circular": True}),
        Config("wide", (2, 3840, 3, 3), {"k": 7}),
        Config("batch", (70, 20, 5, 5), {"k": 3}),
        Config("many_taps", (2, 150, 6, 6), {"k": 101}),
        Config("one", (1, 1, 1, 1), {"k": 3, "circular": True}),
        Config("empty", (0, 8, 4, 4), {"k": 3}),
        Config("long_sums", (1, 4, 1000, 1000), {"k": 3, "offset": 3.0}),
    ),
    small=(
        Config("hw25", (2, 20, 5, 5), {"k": 3}),
        Config("hw49", (3, 17, 7, 7), {"k": 5, "circular": True}),
        Config("hw1", (5, 33, 1, 1), {"k": 5, "per_channel": True}),
        Config("hw361", (1, 8, 19, 19), {"k": 7}),
        Config("tall", (1, 70, 6, 6), {"k": 5, "circular": True, "per_channel": True}),
        Config("one", (1, 1, 1, 1), {"k": 1}),
        Config("empty", (0, 8, 4, 4), {"k": 3, "per_channel": True}),
    ),
    options=tuple(Config(name_of(o), (3, 18, 5, 7), o) for o in _VARIANTS),
    function=functional.efficient_channel_attention,
    weights=lambda channels: [(1, 1, 3)],
    variants={
        "shared": Variant({}),
        "circular-tanh-gate": Variant(
            {"padding_mode": "circular", "gate": "tanh", "return_gate": True}
        ),
        "per-channel": Variant({}, lambda channels: [(channels, 1, 3)]),
        "per-channel-circular": Variant(
            {"padding_mode": "circular"}, lambda channels: [(channels, 1, 5)]
        ),
    },
    constants=((10, False), (10, True)),
)
