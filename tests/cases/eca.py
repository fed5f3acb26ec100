"""Efficient channel attention: its cases, and what the tests know of its kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda import activations, functional, reference
from chattn_cuda.modules import adaptive_kernel_size
from tests.cases.block import Block, ByHand, Config, DropIn, Variant, name_of
from tests.cases.calls import Call, Calls, Make
from tests.cases.triton import SMALL, Compiled, Triton
from tests.cuda_host.kernels import Bytes, Kernels, Plans, floors_of_one_map
from tests.cuda_host.mutation import PLACE, in_csrc
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
    def options(self) -> dict[str, Any]:
        return {"k": self.taps, "per_channel": self.per_channel, "circular": self.circular}


_PROBLEMS = (
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


def _formula(problem: EcaProblem, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    y, gate = reference.efficient_channel_attention(x, weight, circular=problem.circular)
    return {"pooled": x.mean((2, 3)), "gate": gate, "y": y}


def _loads(problem: EcaProblem, plans: Plans) -> tuple[Bytes, Bytes]:
    plan = plans["eca_forward"]
    size, tiles = problem.map_bytes, plan["stage_tiles"]
    forward = 2 * size
    if plan["stage_fits"]:  # without a cluster, a block also reads the planes at its sides
        alone = tiles > 1 and not (problem.sm >= 90 and plan["stage_cluster"] > 1)
        sides = tiles if problem.circular else tiles - 1
        planes = problem.n * sides * 2 * (problem.taps // 2) if alone else 0
        forward = size + planes * 4 * problem.h * problem.w
    return {"x": forward}, {"dy": 2 * size, "x": size}


# ---- bugs to plant -------------------------------------------------------------------------------
_STAGE = "blocks/eca/stage.cuh"
_RESIDENT = "engine/cuda/resident.cuh"
_CONV = "blocks/eca/gate.cuh"

_BUGS = (
    in_csrc(
        "resident-run-ignores-its-skew", _RESIDENT,
        "skew = static_cast<int>(base % V);", "skew = 0;",
        PLACE + "misaligned global load of 16 bytes",
    ),
    in_csrc(
        "resident-run-loads-past-its-end", _RESIDENT,
        "{tid < body, ends[1] < length}", "{tid < body, ends[1] <= length}",
        PLACE + "out-of-bounds load of 4 bytes at byte .* of buffer 'x'",
    ),
    in_csrc(
        "one-mean-too-many", _STAGE,
        "if (p >= 0 && p < channels) st(a.pooled", "if (p >= 0 && p <= channels) st(a.pooled",
        PLACE + "(out-of-bounds store|race on 'pooled')",
    ),
    in_csrc(
        "mean-not-written", _STAGE,
        "if (p >= 0 && p < channels) st(a.pooled + plane + p, sum / conv.hw);", "",
        "eca_forward: no kernel wrote 'pooled' at byte 0",
    ),
    in_csrc(
        "own-mean-for-a-neighbour's", _STAGE,
        "means.at_rank(rank).ld(", "means.ld(",
        PLACE + "load of shared memory that was never written",
    ),
    in_csrc(
        "block-barrier-before-the-exchange", _STAGE,
        "cluster_sync();\n\n  const Shared<A> gates", "__syncthreads();\n\n  const Shared<A> gates",
        PLACE + "access to the shared memory of block rank .*, which may not have started",
    ),
    in_csrc(
        "exchange-that-publishes-nothing", _STAGE,
        "cluster_sync();\n\n  const Shared<A> gates",
        "cluster_sync_relaxed();\n\n  const Shared<A> gates",
        PLACE + "race on 'shared memory'",
    ),
    in_csrc(
        "leaves-while-others-read", _STAGE,
        "cluster_sync();\n\n  own.template emit",
        "__syncthreads();\n\n  own.template emit",
        PLACE + "(a block exits with no cluster barrier|access to the shared .*, which has exited)",
    ),
    in_csrc(
        "map-read-twice-in-stage", _STAGE,
        "  own.load(a.x);\n", "  own.load(a.x);\n  own.load(a.x);\n",
        "x: .* bytes in loads, expected",
    ),
    in_csrc(
        "window-one-short", _CONV,
        "width = p.channels + steps - 1;", "width = p.channels + steps - 2;",
        PLACE + "(load of shared memory that was never written|race on 'shared memory')",
    ),
    in_csrc(
        "no-room-for-taps", _CONV,
        "kConvShared = kApplySamples * kConvWindow + kTapsAtOnce",
        "kConvShared = kApplySamples * kConvWindow",
        PLACE + "out-of-bounds shared store",
    ),
    in_csrc(
        "last-tap-not-written", _CONV,
        "if (tid < taps) {", "if (tid < taps - 1) {",
        PLACE + "load of 'scratch' at byte .*, which nothing has written",
    ),
)  # fmt: skip


# ---- operators -----------------------------------------------------------------------------------
def _calls(
    make: Make,
    shape: tuple[int, int, int, int],
    k: int | None = None,
    gate: int = SIGMOID,
    circular: bool = False,
    per_channel: bool = False,
    to_gate: bool = False,
) -> Calls:
    """``k``: by default as in timm. ``to_gate``: the gate has a gradient."""
    n, c = shape[:2]
    x, dy = make.map("x", *shape), make.map("dy", *shape)
    weight = make.weight("weight", c if per_channel else 1, 1, k or adaptive_kernel_size(c))
    dgate = make.sums("dgate", n, c) if to_gate else None
    saved = (make.sums("pooled", n, c), make.sums("gate", n, c))
    return Calls(
        [Call("eca_forward", (x, weight, gate, circular))],
        [Call("eca_backward", (dy, dgate, x, *saved, weight, gate, circular, True, True))],
    )


_KERNELS = Kernels(
    "eca",
    ("blocks/eca/launch.cu",),
    _PROBLEMS,
    _formula,
    _loads,
    ordered=("many_taps", "rows"),
    independent=(("eca_weight_sum", "eca_gradient"),),
    bugs=_BUGS,
    calls=_calls,
    floors=floors_of_one_map,
    largest=(
        (
            ((1, 4, 8, 8), (1, 4, 128, 128), (1, 256, 2, 2), (1, 66, 2, 2), (1, 33, 2, 2))
            + ((4, 2048, 7, 7),),
            ({}, {"per_channel": True}),
        ),
    ),
    many_blocks=("rows", "batch_rows"),
    gate="ConvForwardGate",
    reads={r"Conv(?:Forward|Backward)Gate<": 1, r"stage_planes<": 1},
)

_TRITON = Triton(
    _calls,
    usual=(),
    rare=(
        *(
            Compiled("eca", SMALL, "fp32", cl, {"per_channel": True, "to_gate": True})
            for cl in (False, True)
        ),
        *(Compiled("eca", SMALL, "bf16", options=o) for o in ({"circular": True}, {"gate": 11})),
        Compiled("eca", SMALL, "bf16", weights="fp32"),
    ),
    writes_map=("conv_rescale_kernel", "conv_spread_kernel"),
    small=("conv_dweight_kernel", "merge_weights_kernel"),
    ways={
        "3": {"k": 3},
        "per-channel": {"per_channel": True},
        "to-gate": {"to_gate": True},
        **{f"at-{at}": {"at": dict.fromkeys(("x", "dy", "weight"), at)} for at in (1, 4)},
    },
    options=lambda shape: {"k": 5},
)


# ---- by hand: means 2, -1, 4 of three channels of 1 x 2 ------------------------------------------
def _map() -> Tensor:
    return torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]], [[4.0, 4.0]]]], dtype=torch.float64)


def _by_hand(name: str, weight: list[list[float]], circular: bool, z: list[float]) -> ByHand:
    s = [1 / (1 + math.exp(-v)) for v in z]
    w = torch.tensor(weight, dtype=torch.float64)[:, None]
    return ByHand(
        name,
        lambda: reference.efficient_channel_attention(_map(), w, circular=circular),
        ([s[0], 3 * s[0], -2 * s[1], 0.0, 4 * s[2], 4 * s[2]], s),
        within=1e-15,
    )


def _gradient() -> tuple[Tensor, ...]:
    # Identity gate and L = y[0, 1, 0, 0] = x10 * z1 with z1 = w0 p0 + w1 p1 + w2 p2
    x = _map().requires_grad_()
    w = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64, requires_grad=True)
    y, _ = reference.efficient_channel_attention(x, w, gate=lambda z: z)
    return torch.autograd.grad(y[0, 1, 0, 0], (x, w))


_EACH = [[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
_BY_HAND = (
    # w = (1, 2, 3): z[c] = p[c-1] + 2 p[c] + 3 p[c+1]
    _by_hand("forward", [[1.0, 2.0, 3.0]], False, [0 + 4 - 3, 2 - 2 + 12, -1 + 8 + 0]),
    _by_hand("circular", [[1.0, 2.0, 3.0]], True, [4 + 4 - 3, 2 - 2 + 12, -1 + 8 + 6]),
    _by_hand("one_tap", [[0.5]], False, [1.0, -0.5, 2.0]),
    _by_hand("per_channel", _EACH, False, [1, -1, -1]),
    _by_hand("per_channel_circular", _EACH, True, [5, -1, 1]),
    # dz1 = x10 = -2: dw = -2 p, dp = -2 w, each over two pixels; and the gate z1 = 12 at x10
    ByHand(
        "gradient",
        _gradient,
        ([-1.0, -1.0, 12.0 - 2.0, -2.0, -3.0, -3.0], [-4.0, 2.0, -8.0]),
    ),
)


# ---- the block -----------------------------------------------------------------------------------
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
    constants=((10, True), (10, False)),
    not_finite={"eca": {"k": 3}, "eca-circular": {"k": 5, "circular": True, "per_channel": True}},
    threads={"k": 5, "circular": True},
    by_hand=_BY_HAND,
    kernels=(_KERNELS,),
    triton=_TRITON,
    drop_ins=(
        DropIn(
            "EfficientChannelAttention",
            "timm.layers.eca.EcaModule",
            obstacles={"the kernels do not know gate (SiLU)": {"gate": nn.SiLU()}},
        ),
        DropIn("CircularEfficientChannelAttention", "timm.layers.eca.CecaModule"),
    ),
    samples={
        "SEGC": lambda cls, channels: cls(channels, 2),
        "SEVar1": lambda cls, channels: cls(),
    },
)
