"""Element functions: what happens to one position's values. `passes` knows how a map is walked.

A fold is ``fold(state, values, numbers, there, CONSTANTS)`` and returns the next state: tuples of
tiles, of which a state begins as zeros. numbers: per channel; there: which elements of the tile
exist; values are 0 where they do not. A merge, ``merge(state, CL)``, makes one number per (n, c) of
each of its tiles. An emit is ``emit(values, numbers, CONSTANTS)`` and returns a value per output.
"""

# mypy: ignore-errors
# (Triton compiles these functions; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .passes import sum_length


@triton.jit
def sums(state, CL: tl.constexpr):
    """The merge of states that are sums."""
    merged = ()
    for k in tl.static_range(len(state)):
        merged = merged + (sum_length(state[k], CL),)
    return merged


# ---- folds


@triton.jit
def add(state, values, numbers, there, CONSTANTS: tl.constexpr):
    """The sum over all maps."""
    total = state[0]
    for m in tl.static_range(len(values)):
        total += values[m]
    return (total,)


@triton.jit
def add_products(state, values, numbers, there, CONSTANTS: tl.constexpr):
    """The sums of g * x_m; values: g and the x_m."""
    added = ()
    for m in tl.static_range(len(state)):
        added = added + (state[m] + values[0] * values[m + 1],)
    return added


@triton.jit
def add_squares(state, values, numbers, there, CONSTANTS: tl.constexpr):
    """The sum of x * x."""
    return (state[0] + values[0] * values[0],)


@triton.jit
def add_activated(state, values, numbers, there, CONSTANTS: tl.constexpr):
    """The sum over all maps, each through its prologue: numbers of `activated`."""
    us = activated(values, numbers, 0, CONSTANTS)
    total = state[0]
    for m in tl.static_range(len(values)):
        total += tl.where(there, us[m], 0.0)
    return (total,)


# ---- emits


@triton.jit
def weigh(values, numbers, CONSTANTS: tl.constexpr):
    """Y = sum_m gate_m * x_m."""
    y = tl.zeros_like(values[0])
    for m in tl.static_range(len(values)):
        y += values[m] * numbers[m]
    return (y,)


@triton.jit
def spread(values, numbers, CONSTANTS: tl.constexpr):
    """Dx_m = dy * gate_m + shift; numbers: the gates and the shift."""
    dxs = ()
    for m in tl.static_range(len(numbers) - 1):
        dxs = dxs + (values[0] * numbers[m] + numbers[len(numbers) - 1],)
    return dxs


@triton.jit
def weigh_activated(values, numbers, CONSTANTS: tl.constexpr):
    """`weigh` of maps through their prologue; numbers: the gates, and those of `activated`."""
    return weigh(activated(values, numbers, len(values), CONSTANTS), numbers, CONSTANTS)


@triton.jit
def activated(values, numbers, FIRST: tl.constexpr, CONSTANTS: tl.constexpr):
    """act(scale_m * x_m + shift_m); numbers: the scales from FIRST on, then the shifts.

    CONSTANTS: the activation and its parameter.
    """
    us = ()
    for m in tl.static_range(len(values)):
        v = values[m] * numbers[FIRST + m] + numbers[FIRST + len(values) + m]
        us = us + (activate(v, CONSTANTS[0], CONSTANTS[1]),)
    return us
