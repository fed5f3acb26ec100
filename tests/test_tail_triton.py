"""The fused tail's Triton operators against its formula in float64: see test_triton_kernels."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from chattn_cuda import activations  # noqa: E402
from chattn_cuda.ops.block import activation_of_code  # noqa: E402
from chattn_cuda.ops.tail import Gate, Norm, Tail, apply_tail  # noqa: E402
from chattn_cuda.reference import accumulation_dtype  # noqa: E402
from chattn_cuda.triton import interpreting, registration, tail, why_not  # noqa: E402
from tests import cases  # noqa: E402
from tests.cases.calls import Make  # noqa: E402
from tests.cases.tail.cuda import HARD_SWISH, LEAKY_RELU, RELU, RELU6, SILU  # noqa: E402
from tests.cases.tail.cuda import calls as calls_of  # noqa: E402
from tests.compare import assert_close  # noqa: E402

DEVICE = "cpu" if interpreting() else "cuda"
if (reason := why_not(DEVICE)) is not None:
    pytest.skip(reason, allow_module_level=True)

registration.register()
ops = torch.ops.chattn_cuda_triton
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
IDENTITY, EPS, PARAM = 0, 1e-3, 0.2


@dataclass(frozen=True)
class Case:
    """A tail whose gate is an input, and whose mean has a gradient of its own."""

    shape: tuple[int, int, int, int] = (3, 10, 5, 5)
    inner: int = IDENTITY
    act: int = RELU
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    residual: bool = True
    gate: bool = True
    of_batch: bool = True
    affine: bool = True
    offset: float = 0.0
    wide: bool = False

    @property
    def acc(self) -> torch.dtype:
        return accumulation_dtype(self.dtype)

    @property
    def functions(self) -> tuple[int, float, int, float]:
        return self.inner, PARAM, self.act, PARAM

    @property
    def masked(self) -> bool:
        return self.residual and self.act in (RELU, RELU6)

    def tensors(self) -> dict[str, Tensor]:
        """What the operators get; absent where it is None."""
        random = torch.Generator().manual_seed(0)

        def new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            v = torch.randn(shape, generator=random, dtype=torch.float64)
            v = v.to(dtype)
            return v.contiguous(memory_format=FORMATS[self.layout]) if v.dim() == 4 else v

        planes, channels = self.shape[:2], self.shape[1:2]
        weights = torch.float32 if self.wide else self.dtype
        found = {"x": new(self.shape, self.dtype) + self.offset, "dy": new(self.shape, self.dtype)}
        residual, gate = new(self.shape, self.dtype), new(planes, self.acc).sigmoid()
        weight, bias = new(channels, weights), new(channels, weights)
        mean, var = new(channels, weights), new(channels, weights).exp()
        dpooled = new(planes, self.acc) * math.prod(self.shape[2:])
        found |= {"residual": residual} if self.residual else {}
        found |= {"gate": gate, "dpooled": dpooled} if self.gate else {}
        found |= {"weight": weight, "bias": bias} if self.affine else {}
        found |= {} if self.of_batch else {"mean": mean, "var": var}
        return {k: v.to(DEVICE) for k, v in found.items()}


def run(case: Case) -> dict[str, Tensor]:
    """The four operators."""
    t = case.tensors()
    x, residual, gate, weight = (t.get(k) for k in ("x", "residual", "gate", "weight"))
    assert x is not None
    numbers, variance, means, pooled = ops.tail_squeeze(
        x, weight, t.get("bias"), t.get("mean"), t.get("var"), [], 0.0, EPS, case.inner, PARAM,
        case.gate,
    )  # fmt: skip
    y, mask = ops.tail_apply(x, residual, numbers, gate, *case.functions, case.masked)
    bits = mask if case.masked else None
    maps = (t["dy"], x, None if case.masked else residual, bits, numbers, gate)
    sums, dgate = ops.tail_reduce(*maps, *case.functions, case.gate)
    plain = case.gate and case.inner == IDENTITY
    dx, dresidual, dweight, dbias = ops.tail_gradient(
        *maps, sums, means if plain else None, t.get("dpooled"), weight, None, *case.functions,
        case.of_batch, True, case.residual, case.affine,
    )  # fmt: skip
    return {
        **{"numbers": numbers, "variance": variance, "means": means, "pooled": pooled},
        **{"y": y, "mask": mask, "sums": sums, "dgate": dgate},
        **{"dx": dx, "dresidual": dresidual, "dweight": dweight, "dbias": dbias},
    }


def formula(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same by autograd, of the same tensors."""
    t = {k: v.to(dtype).requires_grad_() for k, v in case.tensors().items()}
    x, dy = t["x"], t["dy"].detach()
    empty = torch.empty(0)
    if case.of_batch:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    else:
        mean, var = t["mean"], t["var"]
    inverse = torch.rsqrt(var + EPS)
    scale = t["weight"] * inverse if case.affine else inverse
    shift = (t["bias"] if case.affine else 0) - mean * scale
    v = x * scale[:, None, None] + shift[:, None, None]  # as torch's CPU kernels do
    w = activation_of_code(case.inner, PARAM)(v)
    z = w * t["gate"][:, :, None, None] if case.gate else w
    z = z + t["residual"] if case.residual else z
    y = activation_of_code(case.act, PARAM)(z)
    pooled = w.mean((2, 3))
    (g,) = torch.autograd.grad((y * dy).sum(), z, retain_graph=True)
    (slope,) = torch.autograd.grad(w.sum(), v, retain_graph=True)
    total = (y * dy).sum()
    total = total + (pooled * t["dpooled"].detach()).sum() if case.gate else total
    wanted = ["x", *(k for k in ("residual", "gate", "weight", "bias") if k in t)]
    found = torch.autograd.grad(total, [t[k] for k in wanted])
    gradients = dict(zip(wanted, found, strict=True))
    apart = x - mean[:, None, None]
    terms = (g, g * apart)
    if case.inner != IDENTITY:
        terms = (g * w, slope * g, slope * g * apart, slope, slope * apart)  # type: ignore[assignment]
    plain = case.gate and case.inner == IDENTITY
    return {
        "numbers": torch.stack([scale, shift, mean, inverse]),
        "variance": var if case.of_batch else empty,
        "means": x.mean((2, 3)) if plain else empty,
        "pooled": pooled if case.gate else empty,
        "y": y,
        "z": z,
        "sums": torch.stack([v.sum((2, 3)) for v in terms], 1),
        "dgate": gradients.get("gate", empty),
        "dx": gradients["x"],
        "dresidual": gradients.get("residual", empty),
        "dweight": gradients.get("weight", empty),
        "dbias": gradients.get("bias", empty),
    }


MAPS, NORM = ("y", "dx", "dresidual"), ("dweight", "dbias")


def unpacked(mask: Tensor, case: Case) -> Tensor:
    """The bits as a map."""
    n, c, h, w = case.shape
    bits = (mask.cpu()[:, :, None] >> torch.arange(8)).bitwise_and(1).flatten(1).bool()
    if case.layout == "nhwc" or h * w == 1:
        return bits[:, :c].reshape(n, h, w, c).permute(0, 3, 1, 2)
    return bits[:, : h * w].reshape(case.shape)


def check(case: Case) -> None:
    actual, exact, eager = run(case), formula(case, torch.float64), formula(case, case.acc)
    fmt = FORMATS[case.layout]
    for name, value in actual.items():
        if name == "mask":
            continue
        weights = torch.float32 if case.wide else case.dtype
        dtype = case.dtype if name in MAPS else case.acc
        if name in NORM:
            dtype = weights if case.affine else case.dtype
        is_map = name in MAPS and value.numel() > 0
        assert_close(
            name, value, exact[name], eager[name], dtype=dtype,
            memory_format=fmt if is_map else None, allow_zero=name == "sums",
        )  # fmt: skip
    if case.masked:
        z = exact["z"].cpu()
        on = z > 0 if case.act == RELU else (z > 0) & (z < 6)
        assert torch.equal(unpacked(actual["mask"], case), on)


TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BOTH = tuple(FORMATS)
SHAPES = ((2, 9, 7, 7), (3, 33, 1, 1), (1, 3, 1, 3), (2, 5, 2, 2), (70, 17, 2, 3), (1, 2, 40, 41))
CASES = [
    *(Case(dtype=d, layout=f) for d, f in itertools.product(TYPES, BOTH)),
    *(Case(s, layout=f) for s, f in itertools.product(SHAPES, BOTH)),
    *(Case(inner=SILU, act=IDENTITY, dtype=d, layout=f, residual=False)
      for d, f in itertools.product(TYPES, BOTH)),
    *(Case(s, SILU, SILU, layout=f) for s, f in itertools.product(SHAPES[1:], BOTH)),
    *(Case(inner=a.code) for a in activations.ACTIVATIONS.values()),
    *(Case(act=a.code, layout="nhwc") for a in activations.ACTIVATIONS.values()),
    Case(act=RELU6, gate=False),
    Case(act=LEAKY_RELU, residual=False, gate=False, affine=False),
    Case(residual=False, of_batch=False),
    Case(residual=False, of_batch=False, gate=False, layout="nhwc"),
    Case(act=IDENTITY, of_batch=False, affine=False),
    Case(inner=HARD_SWISH, act=RELU6, of_batch=False, gate=False, layout="nhwc"),
    Case(dtype=torch.bfloat16, wide=True),
    Case(dtype=torch.float16, wide=True, of_batch=False, layout="nhwc"),
]  # fmt: skip


def name_of(case: Case) -> str:
    plain = Case()
    changed = {k: v for k in vars(case) if (v := getattr(case, k)) != getattr(plain, k)}
    return "-".join(f"{k}={v}" for k, v in changed.items()).replace("torch.", "") or "usual"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_operators(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(3, 6, 20, 20), (5, 40, 7, 7)])
def test_means_far_from_zero(shape: tuple[int, int, int, int], layout: str) -> None:
    """A mean of 1e4 standard deviations: no variance is the difference of two large numbers."""
    case = Case(shape, act=IDENTITY, layout=layout, offset=1e4)
    actual, exact = run(case), formula(case, torch.float64)
    for name in ("variance", "pooled"):
        torch.testing.assert_close(actual[name].double(), exact[name], rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(actual["means"].double(), exact["means"], rtol=1e-7, atol=0)
    assert_close(
        "dx", actual["dx"], exact["dx"], formula(case, torch.float32)["dx"], dtype=torch.float32
    )


@pytest.mark.parametrize("case", [Case(), Case(inner=SILU, act=SILU)], ids=name_of)
def test_only_what_is_wanted(case: Case) -> None:
    full, t = run(case), case.tensors()
    x, gate, numbers = t["x"], t["gate"], full["numbers"]
    norm = (t["weight"], t["bias"], None, None, [], 0.0, EPS, case.inner, PARAM)
    squeezed = ops.tail_squeeze(x, *norm, False)
    assert torch.equal(squeezed[0], numbers) and torch.equal(squeezed[1], full["variance"])
    assert [tuple(v.shape) for v in squeezed[2:]] == [(0,), (0,)]
    y, mask = ops.tail_apply(x, t["residual"], numbers, gate, *case.functions, False)
    assert torch.equal(y, full["y"])
    assert mask.shape == (0, 4) and mask.dtype == torch.uint8
    bits = full["mask"] if case.masked else None
    maps = (t["dy"], x, None if case.masked else t["residual"], bits, numbers, gate)
    sums, dgate = ops.tail_reduce(*maps, *case.functions, False)
    assert torch.equal(sums, full["sums"]) and dgate.shape == (0,)
    means = full["means"] if case.inner == IDENTITY else None
    of_squeeze = (full["sums"], means, t["dpooled"], t["weight"], None)
    for wanted in itertools.product((False, True), repeat=3):
        args = (*maps, *of_squeeze, *case.functions, True, *wanted)
        found = ops.tail_gradient(*args)
        needed = (*wanted, wanted[2])
        for name, value, need in zip(("dx", "dresidual", *NORM), found, needed, strict=True):
            assert torch.equal(value, full[name]) if need else value.shape == (0,), name
        _, launches = tail.gradient_launches(*args)
        assert len(launches) == (wanted[0] or wanted[2]) + (wanted[0] or wanted[1])


def test_launches() -> None:
    """Two forward for a squeeze, four with an activation in front; one that writes y; two each."""
    counts = []
    for case in (Case(), Case(inner=SILU), Case(of_batch=False, gate=False)):
        made = calls_of(
            Make(torch.float32, device="meta"), case.shape, inner=case.inner, gate=case.gate,
            of_batch=case.of_batch,
        )  # fmt: skip
        calls = itertools.chain(*made)
        counts.append([len(getattr(tail, name).plan(*args)[1]) for name, args in calls])
    assert counts == [[2, 1, 2, 2], [4, 1, 2, 2], [1, 1, 2, 2]]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    "case", [Case(), Case(residual=False), Case(inner=RELU, act=SILU)], ids=name_of
)
def test_a_slope_of_zero_lets_nothing_through(case: Case, layout: str) -> None:
    """Not even what is not finite: with a mask, without, and in front of the gate."""
    case = replace(case, layout=layout)
    t, full = case.tensors(), run(case)
    scale, shift = full["numbers"][:2, :, None, None]
    off = t["x"] * scale + shift < 0 if case.inner == RELU else full["y"] == 0
    dy = torch.where(off, torch.where(t["dy"] > 0, math.inf, math.nan), t["dy"])
    assert off.any() and not off.all()
    bits = full["mask"] if case.masked else None
    residual = None if case.masked else t.get("residual")
    maps = (dy, t["x"], residual, bits, full["numbers"], t["gate"])
    sums, _ = ops.tail_reduce(*maps, *case.functions, True)
    first = int(case.inner == RELU)  # of them g * w is of what comes before the slope
    assert torch.equal(sums[:, first:], full["sums"][:, first:])
    means = full["means"] if case.inner == IDENTITY else None
    dx = ops.tail_gradient(
        *maps, full["sums"], means, t["dpooled"], t["weight"], None, *case.functions, True, True,
        False, False,
    )[0]  # fmt: skip
    assert torch.equal(dx, full["dx"])


@pytest.mark.parametrize("layout", FORMATS)
def test_empty_batch(layout: str) -> None:
    case = Case((0, 6, 4, 5), of_batch=False, layout=layout)
    found = run(case)
    shapes = {k: tuple(v.shape) for k, v in found.items()}
    maps = dict.fromkeys(("y", "dx", "dresidual"), case.shape)
    planes = dict.fromkeys(("means", "pooled", "dgate"), (0, 6))
    weights = dict.fromkeys(NORM, (6,))
    others = {"numbers": (4, 6), "variance": (0,), "sums": (0, 2, 6), "mask": (0, 3)}
    assert shapes == {**maps, **planes, **weights, **others}
    assert not found["dweight"].any() and not found["dbias"].any()
    exact = formula(replace(case, shape=(1, 6, 4, 5)), torch.float64)
    assert exact["numbers"].shape == found["numbers"].shape
    with pytest.raises(RuntimeError, match="statistics of no samples"):
        run(replace(case, of_batch=True))


def test_refused() -> None:
    t, full = Case().tensors(), run(Case())
    with pytest.raises(RuntimeError, match="needs more than a mask"):
        ops.tail_apply(t["x"], None, full["numbers"], None, 0, 0.0, SILU, 0.0, True)
    maps = (t["dy"], t["x"], None, full["mask"], full["numbers"], t["gate"])
    how = (0, 0.0, RELU, 0.0, False, True, True, False)
    with pytest.raises(RuntimeError, match="sums are missing"):
        ops.tail_gradient(*maps, *[None] * 5, *how[:4], True, True, True, False)
    with pytest.raises(RuntimeError, match="means are missing"):
        ops.tail_gradient(*maps, full["sums"], None, t["dpooled"], None, None, *how)


def test_bitwise_reproducible() -> None:
    case = Case((2, 17, 19, 19), dtype=torch.bfloat16)
    first, second = run(case), run(case)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(2, 9, 7, 7), (3, 33, 1, 1), (2, 5, 2, 2)])
def test_masks_are_the_cpu_s(shape: tuple[int, int, int, int], layout: str) -> None:
    cases.require("cpu")
    case = Case(shape, layout=layout)
    t = {k: v.cpu() for k, v in case.tensors().items()}
    found = run(case)
    mask = torch.ops.chattn_cuda.tail_apply(
        t["x"], t["residual"], found["numbers"].cpu(), t["gate"], *case.functions, True
    )[1]
    assert torch.equal(unpacked(found["mask"], case), unpacked(mask, case))


@pytest.mark.parametrize("name", ["tail_squeeze", "tail_apply", "tail_reduce", "tail_gradient"])
def test_schemas_are_the_native_ones(name: str) -> None:
    cases.require("cpu")
    own, native = (
        str(getattr(getattr(torch.ops, n), name).default._schema).partition("::")[2]
        for n in ("chattn_cuda_triton", "chattn_cuda")
    )
    assert own == native


@pytest.mark.parametrize("inner", [IDENTITY, SILU])
def test_around_a_squeeze_and_excitation(inner: int) -> None:
    """As one node of the graph: values and gradients."""
    c, rd = 10, 3
    sizes = ((2, c, 5, 5), (2, c, 5, 5), (c,), (c,), (rd, c), (rd,), (c, rd), (c,))
    random = torch.Generator().manual_seed(1)
    given = [torch.randn(s, generator=random) for s in sizes]
    gate = Gate("se", (RELU, 0.0, activations.ACTIVATIONS["sigmoid"].code))
    spec = Tail(Norm(None, None, EPS), gate, (inner, 0.0), (RELU, 0.0))

    def results(tensors: list[Tensor], function: Any) -> list[Tensor]:
        leaves = [t.to(DEVICE).requires_grad_() for t in tensors]
        y = function(*leaves)
        return [y, *torch.autograd.grad((y * y).sum(), leaves)]

    def formula(*tensors: Tensor) -> Tensor:
        return spec.formula(None, None, *tensors)[0]

    exact = results([t.double() for t in given], formula)
    eager = results(given, formula)
    actual = results(given, lambda *ts: apply_tail("chattn_cuda_triton", spec, *ts)[0])
    names = ("y", "dx", "dresidual", "dweight", "dbias", "dw1", "db1", "dw2", "db2")
    for name, *values in zip(names, actual, exact, eager, strict=True):
        assert_close(name, *values, dtype=torch.float32)
