"""Global response normalisation: its cases, and what the tests know of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chattn_cuda import functional
from chattn_cuda.modules import GlobalResponseNorm
from chattn_cuda.ops.blocks.grn import BLOCK as DESCRIBED
from tests.cases.block import Block, ByHand, Config, DropIn, Variant, name_of
from tests.cases.calls import Call, Calls, Make
from tests.cases.triton import SMALL, Compiled, Triton
from tests.cuda_host.kernels import Bytes, Floor, Floors, Kernels, Plans
from tests.cuda_host.mutation import PLACE, in_csrc
from tests.cuda_host.problems import Problem, Shape


def _parameters(config: Config, random: Callable[..., Tensor]) -> dict[str, Tensor | None]:
    c = config.shape[1]
    return {"weight": random(c), "bias": 0.5 * random(c)}


def _run(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any], backend: str
) -> tuple[Tensor, Tensor]:
    return functional.global_response_norm(
        x, **parameters, eps=options.get("eps", 1e-6), return_gate=True, backend=backend
    )


def _eager(
    x: Tensor, parameters: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """As timm's module."""
    weight, bias = (p[:, None, None] for p in parameters.values())
    g = x.norm(p=2, dim=(2, 3), keepdim=True)
    s = g / (g.mean(1, keepdim=True) + options.get("eps", 1e-6))
    return x + torch.addcmul(bias, weight, x * s), s[:, :, 0, 0]


# ---- CUDA kernels on the host execution layer ----------------------------------------------------
@dataclass(frozen=True)
class GrnProblem(Problem):
    """Global response normalisation."""

    eps: float = 1e-6

    block = "grn"

    @property
    def inputs(self) -> dict[str, Shape]:
        size = self.map_shape
        return {"x": size, "dy": size, "weight": (self.c,), "bias": (self.c,)}

    @property
    def outputs(self) -> dict[str, Shape]:
        planes, size, weights = (self.n, self.c), self.map_shape, (self.c,)
        gradients = {"dx": size, "dweight": weights, "dbias": weights}
        return {"y": size, "norms": planes, "gate": planes, **gradients}

    @property
    def options(self) -> dict[str, Any]:
        return {"eps": self.eps}


_PROBLEMS = (
    GrnProblem("tiles", 3, 20, 7, 5),
    GrnProblem("many_channels", 2, 600, 2, 2),
    GrnProblem("many_samples", 37, 5, 3, 3, eps=0.5),
    GrnProblem("planes", 2, 3, 24, 25),
    GrnProblem("planes_in_parts", 1, 2, 130, 131),
    GrnProblem("rows", 40, 66, 3, 3, channels_last=True),
    GrnProblem("rows_in_parts", 1, 24, 40, 41, channels_last=True),
)


def _formula(problem: GrnProblem, x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    (norms,) = DESCRIBED.others(x, weight, bias, problem.eps)
    y, gate = DESCRIBED.formulas(x, weight, bias, problem.eps)
    return {"norms": norms, "gate": gate, "y": y}


def _loads(problem: GrnProblem, plans: Plans) -> tuple[Bytes, Bytes]:
    size = problem.map_bytes
    return {"x": 2 * size}, {"dy": 2 * size, "x": 2 * size}


def _floors(**options: Any) -> dict[str, Floors]:
    return {
        "forward": Floors(Floor(5, 3), Floor(2, 1), Floor(1, 1)),
        "backward": Floors(Floor(14, 7), Floor(4, 1), Floor(2, 1)),
    }


# ---- bugs to plant -------------------------------------------------------------------------------
_LAUNCH = "blocks/grn/launch.cu"

_BUGS = (
    in_csrc(
        "norm-not-written", _LAUNCH,
        "    st(norms + i, norm);\n", "",
        PLACE + "load of 'norms' at byte .*, which nothing has written",
    ),
    in_csrc(
        "no-room-for-the-warps'-sums", _LAUNCH,
        "blocks_of_threads(p.map.n, stream, sizeof(A) * kWarps)",
        "blocks_of_threads(p.map.n, stream, sizeof(A))",
        PLACE + "shared array of 8 elements .* exceeds the launch's 4",
    ),
    in_csrc(
        "last-warp's-sum-forgotten", _LAUNCH,
        "for (int w = 1; w < kWarps; ++w) v[k]", "for (int w = 1; w < kWarps - 1; ++w) v[k]",
        "gate: (max-abs|relative L2) error",
    ),
    in_csrc(
        "one-channel-too-many", _LAUNCH,
        "if (row != 0 || channel >= a.c) return;", "if (row != 0 || channel > a.c) return;",
        PLACE + "out-of-bounds store",
    ),
    in_csrc(
        "eps-left-out-of-the-gradient", _LAUNCH,
        "mean = total[0] / count + a.eps;", "mean = total[0] / count;",
        "dx: (max-abs|relative L2) error",
    ),
    in_csrc(
        "slope-of-the-next-sample", _LAUNCH,
        "tiles.st(kTileSize + t, ld(slope + plane));",
        "tiles.st(kTileSize + t, ld(slope + plane + c));",
        PLACE + "(out-of-bounds load|load of 'scratch' at byte .*, which nothing has written)",
    ),
    in_csrc(
        "sum-of-dy-where-the-dot-is", _LAUNCH,
        "{sums, sums + parts}, nullptr", "{sums + parts, sums}, nullptr",
        "(dx|dweight): (max-abs|relative L2) error",
    ),
)  # fmt: skip


# ---- operators -----------------------------------------------------------------------------------
def _calls(
    make: Make,
    shape: tuple[int, int, int, int],
    eps: float = 1e-6,
    to_gate: bool = False,
    needs: tuple[bool, bool] = (True, True),
) -> Calls:
    """``to_gate``: the gate has a gradient. ``needs``: dx, and the weights' gradients."""
    n, c = shape[:2]
    x, dy = make.map("x", *shape), make.map("dy", *shape)
    weight, bias = make.weight("weight", c), make.weight("bias", c)
    dgate = make.sums("dgate", n, c) if to_gate else None
    saved = (make.sums("norms", n, c), make.sums("gate", n, c))
    return Calls(
        [Call("grn_forward", (x, weight, bias, eps))],
        [Call("grn_backward", (dy, dgate, x, *saved, weight, eps, *needs))],
    )


_KERNELS = Kernels(
    "grn",
    (_LAUNCH,),
    _PROBLEMS,
    _formula,
    _loads,
    ordered=("many_channels", "rows"),
    independent=(("grn_weights", "grn_slope"),),
    bugs=_BUGS,
    calls=_calls,
    floors=_floors,
    largest=(
        (
            ((1, 4, 8, 8), (1, 4, 128, 128), (1, 256, 2, 2), (1, 66, 2, 2), (1, 33, 2, 2)),
            ({},),
        ),
    ),
    many_blocks=("rows",),
    gate="GrnForwardGate",
    reads={"GrnForwardGate<": 1, "GrnBackwardGate<": 2, "SquareOp<": 1, "DotSumOp<": 2},
    serial=tuple(f"reduce_{way}<double, 2, SquareOp<double>>" for way in ("rows", "planes")),
)

_TRITON = Triton(
    _calls,
    usual=(),
    rare=(
        *(Compiled("grn", SMALL, "fp32", cl, {"to_gate": True}) for cl in (False, True)),
        Compiled("grn", SMALL, "bf16", weights="fp32"),
    ),
    writes_map=("grn_rescale_kernel", "grn_gradient_kernel"),
    small=("grn_gate_kernel", "grn_slope_kernel", "grn_weights_kernel"),
    ways={
        "eps": {"eps": 0.5},
        "to-gate": {"to_gate": True},
        "float32-weights": {"dtype": torch.bfloat16, "weights": torch.float32},
        "only-dx": {"needs": (True, False)},
        "only-dw": {"needs": (False, True)},
        **{f"at-{at}": {"at": dict.fromkeys(("x", "dy", "weight", "bias"), at)} for at in (1, 4)},
    },
)


# ---- by hand: norms 5, 1 and 0 of three channels of 1 x 2, whose mean is 2 -----------------------
def _leaves() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.tensor([[[[3.0, -4.0]], [[1.0, 0.0]], [[0.0, 0.0]]]], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    bias = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def _gradient() -> tuple[Tensor, ...]:
    # L = y[0, 0, 0, 0] = (1 + w0 s0) x00 + b0 with s0 = g0 / m and m = mean g + 0.5 = 2.5
    leaves = _leaves()
    y, _ = DESCRIBED.formulas(*leaves, 0.5)
    return torch.autograd.grad(y[0, 0, 0, 0], leaves)


_BY_HAND = (
    # s = (2, 0.4, 0): 1 + w s = (3, 1.8, 1)
    ByHand(
        "forward",
        lambda: [t.detach() for t in DESCRIBED.formulas(*_leaves(), 0.5)],
        ([9.5, -11.5, 1.8, 0.0, -1.0, -1.0], [2.0, 0.4, 0.0]),
        within=1e-15,
    ),
    # ds0 = w0 x00 = 3: dg0 = 3/m - 3 g0 / (3 m^2) = 1.2 - 0.8, dg1 = dg2 = -0.8; a norm of 0 has no
    # gradient. dx = dg x / g, and 1 + w0 s0 = 3 at x00
    ByHand(
        "gradient",
        _gradient,
        ([3.0 + 0.24, -0.32, -0.8, 0.0, 0.0, 0.0], [6.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        within=1e-15,
    ),
)


# ---- what is refused -----------------------------------------------------------------------------
_X, _W = torch.zeros(2, 8, 4, 4), torch.zeros(8)
_ERRORS = {
    "grn: dim": (lambda: GlobalResponseNorm(0), ValueError, ("dim must be at least 1",)),
    "grn: channels_last": (
        lambda: GlobalResponseNorm(8, channels_last=1),  # type: ignore[arg-type]
        TypeError,
        ("channels_last must be True or False",),
    ),
    "grn: layout": (
        lambda: GlobalResponseNorm(8)(_X),
        ValueError,
        ("x must have shape", "8), got (2, 8, 4, 4)"),
    ),
    "grn: bias": (
        lambda: functional.global_response_norm(_X, _W, _W[1:]),
        ValueError,
        ("bias must have shape (8,), got (7,)",),
    ),
    "grn: eps": (
        lambda: functional.global_response_norm(_X, _W, _W, eps="1"),  # type: ignore[call-overload]
        TypeError,
        ("eps must be a number, got str",),
    ),
}


# ---- the block -----------------------------------------------------------------------------------
BLOCK = Block(
    "grn",
    _parameters,
    _run,
    _eager,
    shapes=(
        Config("stage1", (1, 256, 56, 56)),
        Config("stage4", (4, 2048, 7, 7)),
        Config("c228", (2, 228, 28, 28), {"eps": 0.1}),
        Config("c300", (2, 300, 14, 14)),
        Config("few", (4, 5, 40, 41)),
        Config("hw1", (3, 33, 1, 1)),
        Config("hw197", (2, 24, 1, 197)),
        Config("hw361", (2, 17, 19, 19)),
        Config("hw90000", (1, 9, 300, 300)),
        Config("wide", (2, 3840, 3, 3)),
        Config("batch", (70, 20, 5, 5)),
        Config("one", (1, 1, 1, 1), {"eps": 0.5}),
        Config("empty", (0, 8, 4, 4)),
        Config("long_sums", (1, 4, 1000, 1000), {"offset": 3.0}),
        Config("squares_beyond_float16", (1, 2, 8, 8), {"offset": 3000.0}),
    ),
    small=(
        Config("hw25", (2, 20, 5, 5)),
        Config("hw49", (3, 17, 7, 7), {"eps": 0.1}),
        Config("hw1", (5, 33, 1, 1)),
        Config("hw361", (1, 8, 19, 19)),
        Config("tall", (1, 600, 2, 3)),
        Config("norms_of_zero", (2, 6, 3, 5), {"eps": 0.5, "zeros": True}),
        Config("one", (1, 1, 1, 1), {"eps": 0.5}),
        Config("empty", (0, 8, 4, 4)),
    ),
    options=tuple(Config(name_of(o), (3, 18, 5, 7), o) for o in ({"eps": 1e-3}, {"eps": 2.0})),
    function=functional.global_response_norm,
    weights=lambda channels: [(channels,), (channels,)],
    variants={
        "plain": Variant({}),
        "eps-gate": Variant({"eps": 0.5, "return_gate": True}),
    },
    constants=((1e-6,), (0.5,)),
    not_finite={"grn": {}},
    threads={},
    by_hand=_BY_HAND,
    kernels=(_KERNELS,),
    triton=_TRITON,
    drop_ins=(
        DropIn(
            "GlobalResponseNorm",
            "timm.layers.grn.GlobalResponseNorm",
            ({}, {"channels_last": False}, {"eps": 0.1}),
            obstacles={
                "channel_dim is -1 and spatial_dim (2,)": {"spatial_dim": (2,)},
                "channel_dim is 3 and spatial_dim (1, 2)": {"channel_dim": 3},
                "eps is a Tensor": {"eps": torch.tensor(0.5)},
            },
        ),
    ),
    errors=_ERRORS,
)
