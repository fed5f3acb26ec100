"""Activations and gates as Triton functions; the formulas of csrc/common/activation.h.

Triton's own ``exp`` is the hardware approximation on a GPU, and libdevice does not exist in the
interpreter. The elementary functions here are therefore written out in plain arithmetic: the
interpreter runs the same sequence of operations that a GPU does (up to fused multiply-adds), so
their accuracy is tested without one. They act on (N, C)-sized data, where their cost is nothing.

Every function keeps the floating type of its argument (float32 or float64) and propagates NaN as
PyTorch's does. Activation codes are compile-time integers, in the order of ``codes``.
"""

# mypy: ignore-errors
# (Triton compiles these functions; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

# The interpreter's bfloat16 conversion truncates; to_storage works around it.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

IDENTITY = tl.constexpr(0)
RELU = tl.constexpr(1)
RELU6 = tl.constexpr(2)
LEAKY_RELU = tl.constexpr(3)
SILU = tl.constexpr(4)
HARD_SWISH = tl.constexpr(5)
GELU = tl.constexpr(6)
GELU_TANH = tl.constexpr(7)
MISH = tl.constexpr(8)
ELU = tl.constexpr(9)
SIGMOID = tl.constexpr(10)
HARD_SIGMOID = tl.constexpr(11)
TANH = tl.constexpr(12)

# Code -> name, for the test that compares them with the package's table.
codes = {
    0: "identity",
    1: "relu",
    2: "relu6",
    3: "leaky_relu",
    4: "silu",
    5: "hard_swish",
    6: "gelu",
    7: "gelu_tanh",
    8: "mish",
    9: "elu",
    10: "sigmoid",
    11: "hard_sigmoid",
    12: "tanh",
}


@triton.jit
def to_storage(v, dtype: tl.constexpr):
    """``v`` (float32 or float64) rounded once, to nearest even, to the element type ``dtype``."""
    if INTERPRETED and dtype == tl.bfloat16 and v.dtype == tl.float32:
        bits = v.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        kept = tl.where(v != v, 0x7FC0, rounded)
        return kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return v.to(dtype)


@triton.jit
def _power_of_two(n, dtype: tl.constexpr):
    # n within the exponents of normal numbers: the exponent field, written directly
    if dtype == tl.float64:
        return ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _reduced_expm1(x):
    # x = n ln 2 + r with |r| <= ln(2) / 2; returns n and exp(r) - 1. ln 2 is split so that n times
    # its high part is exact; the Taylor series in Horner's form is short at this range.
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    p = n * 0 + 1
    if x.dtype == tl.float64:
        r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
        for i in tl.static_range(12):
            p = p * (r * (1.0 / (13 - i))) + 1
    else:
        r = (x - n * 0.693359375) - n * -2.12194440054690582e-4
        for i in tl.static_range(6):
            p = p * (r * (1.0 / (7 - i))) + 1
    return n.to(tl.int32), r * p


@triton.jit
def _clamped(x, low: tl.constexpr, high: tl.constexpr):
    # NaN becomes `low`: the callers put it back
    return tl.where(x > low, tl.where(x < high, x, high), low).to(x.dtype)


@triton.jit
def exp(x):
    """Exponential, within 2 ulp; 0 and inf beyond the range, subnormals included."""
    if x.dtype == tl.float64:
        n, p = _reduced_expm1(_clamped(x, -746.0, 710.0))
    else:
        n, p = _reduced_expm1(_clamped(x, -104.0, 89.0))
    half = n >> 1  # two factors, because 2^n itself may leave the range of normal numbers
    scaled = (p + 1) * _power_of_two(half, x.dtype) * _power_of_two(n - half, x.dtype)
    return tl.where(x == x, scaled, x)


@triton.jit
def expm1_nonpositive(x):
    """Exponential minus 1 for x <= 0, without cancellation near 0."""
    n, p = _reduced_expm1(_clamped(x, -45.0, 0.0))  # exp(-45) is below half an ulp of 1
    scale = _power_of_two(n, x.dtype)
    return tl.where(x == x, scale * p + (scale - 1), x)


@triton.jit
def tanh(x):
    """Hyperbolic tangent from expm1(-2|x|): no cancellation near 0, no overflow."""
    t = expm1_nonpositive(tl.abs(x) * -2)
    positive = -t / (t + 2)
    return tl.where(x < 0, -positive, positive)


@triton.jit
def sigmoid(x):
    """Logistic function 1 / (1 + exp(-x))."""
    return 1 / (exp(-x) + 1)


@triton.jit
def _hard_ramp(x):
    # clamp(x + 3, 0, 6), NaN kept
    s = x + 3
    return tl.where(s < 0, 0.0, tl.where(s > 6, 6.0, s)).to(x.dtype)


@triton.jit
def _gelu_inner(x):
    return (x * x * x * 0.044715 + x) * 0.79788456080286535588


@triton.jit
def _mish_tanh(x):
    # t = tanh(softplus(x)) = w / (w + 2) with w = e^x (e^x + 2), and 1 - t, without cancellation.
    # From x = 20 on, t is 1 in float64 too.
    e = exp(tl.where(x < 20, x, 20.0).to(x.dtype))
    w = e * (e + 2)
    return w / (w + 2), tl.where(x < 20, 2 / (w + 2), 0.0).to(x.dtype)


@triton.jit
def activate(x, ACT: tl.constexpr, PARAM: tl.constexpr):
    """Activation ``ACT`` of ``x``; ``PARAM`` is leaky_relu's slope and elu's alpha."""
    if ACT == RELU:
        return tl.where(x < 0, 0.0, x).to(x.dtype)
    elif ACT == RELU6:
        return tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x)).to(x.dtype)
    elif ACT == LEAKY_RELU:
        return tl.where(x > 0, x, x * PARAM)
    elif ACT == SILU:
        return x * sigmoid(x)
    elif ACT == HARD_SWISH:
        return x * _hard_ramp(x) / 6
    elif ACT == GELU:
        return x * 0.5 * (tl.erf(x * 0.70710678118654752440) + 1)
    elif ACT == GELU_TANH:
        return x * 0.5 * (tanh(_gelu_inner(x)) + 1)
    elif ACT == MISH:
        t, _ = _mish_tanh(x)
        return x * t
    elif ACT == ELU:
        return tl.where(x > 0, x, expm1_nonpositive(tl.where(x > 0, 0.0, x).to(x.dtype)) * PARAM)
    elif ACT == SIGMOID:
        return sigmoid(x)
    elif ACT == HARD_SIGMOID:
        return _hard_ramp(x) / 6
    elif ACT == TANH:
        return tanh(x)
    else:
        return x


@triton.jit
def activation_gradient(x, d, ACT: tl.constexpr, PARAM: tl.constexpr):
    """Gradient ``d`` of a value times the derivative of ``ACT`` at its pre-activation ``x``.

    At a kink the derivative is PyTorch's. Where a branch has the derivative 0 the result is 0
    whatever ``d`` is: an infinite gradient must not become NaN there.
    """
    zero = tl.full(x.shape, 0, x.dtype)
    if ACT == RELU:
        return tl.where(x <= 0, zero, d)
    elif ACT == RELU6:
        return tl.where((x > 0) & (x < 6), d, zero)
    elif ACT == LEAKY_RELU:
        return tl.where(x > 0, d, d * PARAM)
    elif ACT == SILU:
        s = sigmoid(x)
        return d * (s * (x * (1 - s) + 1))
    elif ACT == HARD_SWISH:
        return tl.where(x <= -3, zero, tl.where(x < 3, d * (x / 3 + 0.5), d))
    elif ACT == GELU:
        cdf = (tl.erf(x * 0.70710678118654752440) + 1) * 0.5
        return d * (cdf + x * 0.39894228040143267794 * exp(x * x * -0.5))
    elif ACT == GELU_TANH:
        t = tanh(_gelu_inner(x))
        slope = (x * x * 0.134145 + 1) * 0.79788456080286535588
        return d * ((t + 1) * 0.5 + x * 0.5 * (1 - t * t) * slope)
    elif ACT == MISH:
        t, rest = _mish_tanh(x)
        return d * (t + x * rest * (t + 1) * sigmoid(x))
    elif ACT == ELU:
        return tl.where(x > 0, d, d * (exp(tl.where(x > 0, 0.0, x).to(x.dtype)) * PARAM))
    elif ACT == SIGMOID:
        s = sigmoid(x)
        return d * (s * (1 - s))
    elif ACT == HARD_SIGMOID:
        return tl.where((x > -3) & (x < 3), d / 6, zero)
    elif ACT == TANH:
        t = tanh(x)
        return d * (1 - t * t)
    else:
        return d


@triton.jit
def gate_gradient(s, d, GATE: tl.constexpr):
    """The same for gate function ``GATE`` (one of the five), from its value ``s``."""
    zero = tl.full(s.shape, 0, s.dtype)
    if GATE == RELU:
        return tl.where(s <= 0, zero, d)
    elif GATE == SIGMOID:
        return d * (s * (1 - s))
    elif GATE == HARD_SIGMOID:
        return tl.where((s > 0) & (s < 1), d / 6, zero)
    elif GATE == TANH:
        return d * (1 - s * s)
    else:
        return d
