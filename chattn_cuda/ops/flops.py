"""The operators' floating-point operations, for torch's FlopCounterMode.

Counted as it counts the convolutions that they stand for: two per multiplication of a weight, none
for pooling, activations and rescaling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

__all__ = ["register_flops"]


def _product(n: int, *weight: int) -> int:
    total = 2 * n
    for size in weight:
        total *= size
    return total


def _se_forward(x: Any, w1: Any, b1: Any, w2: Any, *rest: Any, **_: Any) -> int:
    first = 0 if w1 is None else _product(x[0], *w1)
    return first + _product(x[0], *w2)


def _se_backward(dy: Any, dgate: Any, x: Any, *rest: Any, **_: Any) -> int:
    w1, w2, (need_dx, need_dw) = rest[4], rest[5], rest[-2:]
    first = 0 if w1 is None else _product(x[0], *w1)
    second = _product(x[0], *w2)
    # through the second layer in any case, unless it is the only one and dx is not wanted
    through = second if w1 is not None or need_dx else 0
    return through + need_dx * first + need_dw * (first + second)


def _eca_forward(x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    return _product(x[0], x[1], weight[2])


def _eca_backward(dy: Any, dgate: Any, x: Any, *rest: Any, **_: Any) -> int:
    weight, (need_dx, need_dw) = rest[2], rest[-2:]
    return (need_dx + need_dw) * _product(x[0], x[1], weight[2])


_FORMULAS: dict[str, Any] = {
    "se_forward": _se_forward,
    "se_backward": _se_backward,
    "eca_forward": _eca_forward,
    "eca_backward": _eca_backward,
}


def register_flops(namespace: str) -> None:
    """Register the formulas for the operators of ``namespace``; once per namespace."""
    operators = getattr(torch.ops, namespace)
    for name, formula in _FORMULAS.items():
        register_flop_formula(getattr(operators, name))(formula)
