"""The operators' floating-point operations, for torch's FlopCounterMode.

Counted as it counts the convolutions that they stand for: two per multiplication of a weight, none
for pooling, activations, rescaling and sums over branches. A selective kernel has weights only in
the operators of the whole block: else the layers between its operators are PyTorch's, and counted
as such.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from chattn_cuda.ops.blocks import BLOCKS

__all__ = ["register_flops"]


def _product(n: int, weight: Sequence[int]) -> int:
    return 2 * n * math.prod(weight)


def _sk(*args: Any, **_: Any) -> int:
    return 0


def _sk_forward(branches: Any, w_reduce: Any, *rest: Any, **_: Any) -> int:
    n, w_select = branches[0][0], rest[3]
    return _product(n, w_reduce) + _product(n, w_select)


def _sk_backward(dy: Any, dlogits: Any, branches: Any, w_reduce: Any, *rest: Any, **_: Any) -> int:
    w_select, wanted = rest[1], rest[-1]
    first, second = _product(dy[0], w_reduce), _product(dy[0], w_select)
    weights = (wanted & 1) * first + (wanted >> 4 & 1) * second
    return second + (wanted >> 6 & 1) * first + weights


_FORMULAS: dict[str, Any] = {
    "sk_squeeze": _sk,
    "sk_select": _sk,
    "sk_dot": _sk,
    "sk_gradient": _sk,
    "sk_forward": _sk_forward,
    "sk_backward": _sk_backward,
}
for _block in BLOCKS.values():
    _FORMULAS[f"{_block.name}_forward"] = _block.forward_flops
    _FORMULAS[f"{_block.name}_backward"] = _block.backward_flops


def register_flops(namespace: str) -> None:
    """Register the formulas for the operators of ``namespace``, where somebody counts.

    Called while a dispatch mode is active and not before, because importing the counter takes
    longer than importing this package. A counter copies the formulas when it is made: those that
    are active get them, too.
    """
    if "torch.utils.flop_counter" not in sys.modules:
        return
    formulas = _registered(namespace)
    for mode in _get_current_dispatch_mode_stack():
        registry = getattr(getattr(mode, "counter", None), "flop_registry", None)
        if isinstance(registry, dict):
            registry.update(formulas)


@functools.cache
def _registered(namespace: str) -> dict[Any, Any]:
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    operators = getattr(torch.ops, namespace)
    packets = []
    for name, formula in _FORMULAS.items():
        if hasattr(operators, name):  # not every backend has those of whole selective kernels
            packets.append(getattr(operators, name))
            register_flop_formula(packets[-1])(formula)
    return {packet: flop_registry[packet] for packet in packets}
