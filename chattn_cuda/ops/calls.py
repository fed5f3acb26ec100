"""Calls of a backend's operators.

For graphs that others make of them, the operators have gradients of their own (`registration`). The
kernels that look after that are written in Python: where this package's functions of autograd call
an operator, they go past them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from chattn_cuda.ops.flops import register_flops

__all__ = ["call", "call_eager", "call_with_gradient", "operator_of"]

_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def operator_of(namespace: str, name: str) -> Any:
    """The operator ``name`` of a backend itself."""
    return getattr(getattr(torch.ops, namespace), name).default


@functools.cache  # of which torch.compile would warn
def _function_of(namespace: str, name: str) -> Any:
    """What the operator's ``__call__`` calls: a function of Python less."""
    return operator_of(namespace, name)._op


def call(namespace: str, name: str, *args: Any) -> Any:
    """The operator ``name`` of a backend; with its own gradient where something is compiled."""
    if torch.compiler.is_compiling():
        return operator_of(namespace, name)(*args)
    return call_eager(namespace, name, *args)


def call_eager(namespace: str, name: str, *args: Any) -> Any:
    """The same where it is known that nothing is compiled: without a gradient."""
    if torch._C._len_torch_dispatch_stack() > 0:  # somebody may count the operations
        register_flops(namespace)
    function = _function_of(namespace, name)
    with _BelowAutograd():
        return function(*args)


def call_with_gradient(namespace: str, name: str, *args: Any) -> Any:
    """The operator with its own gradient."""
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0:
        register_flops(namespace)
    return operator_of(namespace, name)(*args)
