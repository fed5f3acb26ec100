"""Element functions: what happens to one position's values. `passes` knows how a map is walked.

A fold is ``fold(state, xs, numbers, at, CONSTANTS)`` and returns the next state: tuples of tiles,
of which a state begins as zeros. A merge, ``merge(state, K, CL)``, makes number K of a plane (n, c)
of the tiles. An emit is ``emit(xs, numbers, at, CONSTANTS)`` and returns a value per output.

xs: the maps, of which `passes.read` gives the tile at ``at``; numbers: tiles per channel, of the
accumulation type. A map is read where its values are used: reading all of them first keeps more
numbers in registers than there are.
"""

# mypy: ignore-errors
# (Triton compiles these functions; their parameters have no Python types.)

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate
from .passes import read, sum_length


@triton.jit
def sums(state, K: tl.constexpr, CL: tl.constexpr):
    """The merge of states that are sums."""
    return sum_length(state[K], CL)


# ---- folds


@triton.jit
def add(state, xs, numbers, at, CONSTANTS: tl.constexpr):
    """The sum over all maps."""
    total = state[0]
    for m in tl.static_range(len(xs)):
        total += read(xs[m], at, total.dtype)
    return (total,)


@triton.jit
def add_products(state, xs, numbers, at, CONSTANTS: tl.constexpr):
    """The sums of g * x_m; maps: g and the x_m."""
    g = read(xs[0], at, state[0].dtype)
    added = ()
    for m in tl.static_range(len(state)):
        added = added + (state[m] + g * read(xs[m + 1], at, g.dtype),)
    return added


@triton.jit
def add_squares(state, xs, numbers, at, CONSTANTS: tl.constexpr):
    """The sum of x * x."""
    x = read(xs[0], at, state[0].dtype)
    return (state[0] + x * x,)


@triton.jit
def add_activated(state, xs, numbers, at, CONSTANTS: tl.constexpr):
    """The sum over all maps, each through its prologue: numbers and constants of `activated`."""
    total = state[0]
    for m in tl.static_range(len(xs)):
        u = activated(xs, m, numbers, 0, at, CONSTANTS)
        total += tl.where(at[1], u, 0.0)
    return (total,)


# ---- emits


@triton.jit
def weigh(xs, numbers, at, CONSTANTS: tl.constexpr):
    """Y = sum_m gate_m * x_m."""
    y = read(xs[0], at, numbers[0].dtype) * numbers[0]
    for m in tl.static_range(1, len(xs)):
        y += read(xs[m], at, y.dtype) * numbers[m]
    return (y,)


@triton.jit
def spread(xs, numbers, at, CONSTANTS: tl.constexpr):
    """Dx_m = dy * gate_m + shift; maps: dy; numbers: the gates and the shift."""
    g = read(xs[0], at, numbers[0].dtype)
    dxs = ()
    for m in tl.static_range(len(numbers) - 1):
        dxs = dxs + (g * numbers[m] + numbers[len(numbers) - 1],)
    return dxs


@triton.jit
def weigh_activated(xs, numbers, at, CONSTANTS: tl.constexpr):
    """`weigh` of maps through their prologue; numbers: the gates, and those of `activated`."""
    y = activated(xs, 0, numbers, len(xs), at, CONSTANTS) * numbers[0]
    for m in tl.static_range(1, len(xs)):
        y += activated(xs, m, numbers, len(xs), at, CONSTANTS) * numbers[m]
    return (y,)


@triton.jit
def activated(
    xs, M: tl.constexpr, numbers, FIRST: tl.constexpr, at, CONSTANTS: tl.constexpr
):  # fmt: skip
    """Map M as act(scale * x + shift); numbers: the scales of all maps from FIRST on, then shifts.

    CONSTANTS: the activation and its parameter.
    """
    x = read(xs[M], at, numbers[0].dtype)
    v = x * numbers[FIRST + M] + numbers[FIRST + len(xs) + M]
    return activate(v, CONSTANTS[0], CONSTANTS[1])
